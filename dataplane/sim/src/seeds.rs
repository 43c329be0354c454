//! Running a test over many seeds, and repeating the one that failed.

use std::ops::Range;

/// Names the one seed to run, decimal or hexadecimal behind `0x`.
const VARIABLE: &str = "OUTBOARD_SEED";
/// Names the first seed and how many there are: `1+200`.
const RANGE: &str = "OUTBOARD_SEEDS";

/// Runs `test` with `count` seeds from `first` on, or with those that the environment variables
/// OUTBOARD_SEED (one) and OUTBOARD_SEEDS (`FIRST+COUNT`) name. When it panics, prints the command
/// that repeats it: `command` with the seed in front. How many seeds there were.
///
/// # Panics
/// When a variable is no number.
pub fn for_each_seed(command: &str, first: u64, count: u64, mut test: impl FnMut(u64)) -> u64 {
    let seeds = chosen(first, count);
    for seed in seeds.clone() {
        let repeat = Repeat { command, seed };
        test(seed);
        drop(repeat);
    }
    seeds.end - seeds.start
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

fn chosen(first: u64, count: u64) -> Range<u64> {
    if let Ok(text) = std::env::var(VARIABLE) {
        let seed = parse(&text).unwrap_or_else(|error| panic!("{VARIABLE}={text}: {error}"));
        return seed..seed + 1;
    }
    match std::env::var(RANGE) {
        Ok(text) => range(&text).unwrap_or_else(|| panic!("{RANGE}={text}: not FIRST+COUNT")),
        Err(_) => first..first + count,
    }
}

fn range(text: &str) -> Option<Range<u64>> {
    let (first, count) = text.split_once('+')?;
    let first = parse(first).ok()?;
    Some(first..first.checked_add(parse(count).ok()?)?)
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
        assert_eq!((range("5+0x10"), range("7")), (Some(5..21), None));
        assert!(parse("").is_err() && parse("x").is_err() && parse("-1").is_err());
    }
}
