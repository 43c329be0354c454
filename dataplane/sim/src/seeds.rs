//! Running a test over many seeds, and repeating the one that failed.

/// Names the one seed to run, decimal or hexadecimal behind `0x`.
const VARIABLE: &str = "OUTBOARD_SEED";

/// Runs `test` with `count` seeds from `first` on, or with the single one that the environment
/// variable OUTBOARD_SEED names. When it panics, prints the command that repeats it: `command`
/// with that variable in front.
///
/// # Panics
/// When OUTBOARD_SEED is no number.
pub fn for_each_seed(command: &str, first: u64, count: u64, mut test: impl FnMut(u64)) {
    for seed in chosen(first, count) {
        let repeat = Repeat { command, seed };
        test(seed);
        drop(repeat);
    }
}

/// Prints the command when it is dropped by a panic.
struct Repeat<'a> {
    command: &'a str,
    seed: u64,
}

impl Drop for Repeat<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed; to repeat it: {VARIABLE}={} {}", self.seed, self.command);
        }
    }
}

fn chosen(first: u64, count: u64) -> Vec<u64> {
    match std::env::var(VARIABLE) {
        Ok(text) => {
            vec![parse(&text).unwrap_or_else(|error| panic!("{VARIABLE}={text}: {error}"))]
        }
        Err(_) => (first..first + count).collect(),
    }
}

fn parse(text: &str) -> Result<u64, std::num::ParseIntError> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_read_in_both_notations() {
        assert_eq!(parse("17"), Ok(17));
        assert_eq!(parse("0xff"), Ok(255));
        assert!(parse("").is_err() && parse("x").is_err() && parse("-1").is_err());
    }
}
