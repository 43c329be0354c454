//! What a figure depends on beside the program: processor, kernel, mitigations, build.

use crate::reference::cacheline;
use crate::schema::Fingerprint;
use std::fs;
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

/// The commit that the build was made from, when the builder told.
const BUILD_COMMIT: Option<&str> = option_env!("OUTBOARD_COMMIT");
/// The compiler of the build, when the builder told.
const BUILD_RUSTC: Option<&str> = option_env!("OUTBOARD_RUSTC");

/// Describes the machine; measures the cache-line round trip as `before`.
pub fn take() -> Fingerprint {
    let cpuinfo = read("/proc/cpuinfo");
    let meminfo = read("/proc/meminfo");
    Fingerprint {
        cpu: field(&cpuinfo, "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
        cores: std::thread::available_parallelism().map_or(1, |n| n.get() as u32),
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        os: os_name(&read("/etc/os-release")),
        governor: governor(),
        hypervisor: hypervisor(&cpuinfo),
        memory_mib: kib(&meminfo, "MemTotal") / 1024,
        hugepages: field(&meminfo, "HugePages_Total").and_then(|n| n.parse().ok()).unwrap_or(0),
        mitigations: mitigations(),
        cacheline_before_ns: cacheline::round_trip_ns(),
        cacheline_after_ns: None,
        commit: BUILD_COMMIT.map(str::to_owned).or_else(commit),
        rustc: BUILD_RUSTC.map(str::to_owned).or_else(|| output("rustc", &["--version"])),
        profile: if cfg!(debug_assertions) { "debug" } else { "release" }.to_owned(),
        date: iso8601(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())),
    }
}

/// Measures the cache-line round trip as `after`.
pub fn complete(fingerprint: &mut Fingerprint) {
    fingerprint.cacheline_after_ns = cacheline::round_trip_ns();
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// The value of the first `key : value` line.
fn field(text: &str, key: &str) -> Option<String> {
    let line = |line: &str| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key).then(|| value.trim().to_owned())
    };
    text.lines().find_map(line)
}

fn kib(meminfo: &str, key: &str) -> u64 {
    let value = field(meminfo, key).unwrap_or_default();
    value.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

fn os_name(text: &str) -> String {
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.unwrap_or("unknown").trim_matches('"').to_owned()
}

fn hypervisor(cpuinfo: &str) -> bool {
    let flags = field(cpuinfo, "flags").or_else(|| field(cpuinfo, "Features")).unwrap_or_default();
    flags.split_whitespace().any(|flag| flag == "hypervisor")
}

fn governor() -> Option<String> {
    let path = "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor";
    fs::read_to_string(path).ok().map(|name| name.trim().to_owned())
}

fn mitigations() -> Vec<String> {
    let entries = fs::read_dir("/sys/devices/system/cpu/vulnerabilities").into_iter().flatten();
    let mut all: Vec<String> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let state = fs::read_to_string(entry.path()).ok()?;
            let name = entry.file_name().into_string().ok()?;
            (state.trim() != "Not affected").then(|| format!("{name}: {}", state.trim()))
        })
        .collect();
    all.sort();
    all
}

/// The commit of the directory that the program is run in, `+` for a changed tree.
fn commit() -> Option<String> {
    let commit = output("git", &["rev-parse", "--short=12", "HEAD"])?;
    let changed = output("git", &["status", "--porcelain", "--untracked-files=no"]);
    Some(if changed.is_some() { commit + "+" } else { commit })
}

/// The first line that a program prints; `None` when it is missing, fails or prints nothing.
fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let line = text.lines().next()?.trim().to_owned();
    (output.status.success() && !line.is_empty()).then_some(line)
}

/// Seconds since 1970 as `YYYY-MM-DDThh:mm:ssZ`. Days become a date by counting in eras of 400
/// years that start on 1 March, so that the leap day is the last of its year.
fn iso8601(unix_s: u64) -> String {
    let (days, second) = (unix_s / 86_400 + 719_468, unix_s % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(iso8601(0), "1970-01-01T00:00:00Z");
        assert_eq!(iso8601(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(iso8601(951_868_799), "2000-02-29T23:59:59Z");
        assert_eq!(iso8601(4_107_542_400), "2100-03-01T00:00:00Z");
    }

    #[test]
    fn fields_of_proc_files() {
        let text = "model name\t: Some CPU @ 2 GHz\nflags\t: fpu hypervisor sse\nMemTotal: 2048 kB";
        assert_eq!(field(text, "model name").unwrap(), "Some CPU @ 2 GHz");
        assert!(hypervisor(text) && !hypervisor("flags : fpu"));
        assert_eq!(kib(text, "MemTotal"), 2048);
        assert_eq!(os_name("ID=x\nPRETTY_NAME=\"An OS 1\"\n"), "An OS 1");
    }

    #[test]
    fn this_machine_has_a_fingerprint() {
        let fingerprint = take();
        assert!(!fingerprint.kernel.is_empty() && fingerprint.memory_mib > 0);
        assert!(fingerprint.cores >= 1 && !fingerprint.cpu.is_empty());
    }
}
