//! How much memory a process holds: resident, in huge pages, and in memfds.

use crate::error::Error;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;

const MIB: f64 = 1048576.0;
/// Pages of a memfd of huge pages are at least this large.
const HUGE_BYTES: u64 = 2 << 20;

/// RSS + hugetlb + memfd of a process in MiB, nothing twice: pages of a memfd that are mapped stand
/// in the resident set as shared memory, so of both the larger counts; huge pages likewise.
pub fn held_mib(pid: u32) -> Result<f64, Error> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))
        .map_err(Error::system(format!("cannot read the memory of process {pid}")))?;
    let (plain, huge) = memfds(pid);
    let kib = |key: &str| field_kib(&status, key) << 10;
    let private = kib("RssAnon") + kib("RssFile");
    let shared = kib("RssShmem").max(plain);
    let huge = kib("HugetlbPages").max(huge);
    Ok((private + shared + huge) as f64 / MIB)
}

fn field_kib(status: &str, key: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    number.unwrap_or(0)
}

/// Bytes allocated in the process's memfds of plain and of huge pages.
fn memfds(pid: u32) -> (u64, u64) {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
        let is_memfd = std::fs::read_link(entry.path())
            .is_ok_and(|target| target.to_string_lossy().starts_with("/memfd:"));
        if let (true, Ok(data)) = (is_memfd, std::fs::metadata(entry.path())) {
            files.insert((data.dev(), data.ino()), (data.blksize(), data.blocks() * 512));
        }
    }
    let sum = |huge: bool| {
        let of_kind = files.values().filter(|(page, _)| (*page >= HUGE_BYTES) == huge);
        of_kind.map(|(_, bytes)| bytes).sum()
    };
    (sum(false), sum(true))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, fallocate, memfd_create};

    #[test]
    fn a_memfd_counts_once_mapped_or_not() {
        let before = held_mib(std::process::id()).unwrap();
        let file = memfd_create("outboard-bench-test", MemfdFlags::CLOEXEC).unwrap();
        fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 64 << 20).unwrap();
        let after = held_mib(std::process::id()).unwrap();
        assert!((50.0..110.0).contains(&(after - before)), "{before} {after}");
    }

    #[test]
    fn fields_are_found() {
        let status = "Name:\tx\nRssAnon:\t    1234 kB\nRssAnonymous:\t9 kB\n";
        assert_eq!((field_kib(status, "RssAnon"), field_kib(status, "Missing")), (1234, 0));
        assert!(held_mib(u32::MAX).is_err());
    }
}
