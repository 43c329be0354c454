//! Unsafe code lives in the files named here, and every place says why it is sound.

use super::Finding;
use super::source::Source;

/// Folders and files that may contain unsafe code. `dataplane/dma` is where it belongs; a line
/// more needs a reason why a safe wrapper there would not do.
const MAY: &[&str] = &[
    "dataplane/dma/src",
    // The binding of DPDK and what makes it safe; dma is built where there is no DPDK.
    "dataplane/dpdk-sys",
    // The same rings as in dma, compiled against loom's cells.
    "dataplane/order",
    // A packet's two legal ends: takes the chain out of what must not be dropped.
    "dataplane/src/packet.rs",
    // The tests' packet socket and error queue, which nothing outside tests needs.
    "dataplane/tests/netns/errors.rs",
    "dataplane/tests/netns/packet.rs",
    // Two commands of bpf(2) that aya lacks; dma knows nothing of BPF.
    "ebpf/src/link.rs",
    // Programs of the kernel: all their memory is the verifier's.
    "ebpf/prog",
    // Reference programs share no hot code with Outboard, its wrappers included.
    "bench/src/reference/bare_file.rs",
    "bench/src/reference/ring_echo.rs",
    "bench/src/reference/xdp_socket.rs",
];

/// Lines above an unsafe block in which its SAFETY comment may begin.
const COMMENT_LINES: usize = 8;

/// Unsafe code of one file.
pub fn check(source: &Source) -> Vec<Finding> {
    let Some(rust) = &source.rust else { return Vec::new() };
    let lines: Vec<&str> = source.text.lines().collect();
    let allowed = MAY.iter().any(|place| source.is_in(place));
    let mut findings = Vec::new();
    for place in &rust.unsafes {
        if !allowed {
            let what = "unsafe code outside the files named in xtask/src/tidy/unsafe_fence.rs; \
                        add a safe wrapper to dataplane/dma";
            findings.push(Finding::new(&source.path, place.line, what));
        }
        let reasoned = match place.declares {
            true => has_safety_section(&lines, place.line),
            false => has_safety_comment(&lines, place.line),
        };
        if !reasoned {
            let what = "unsafe without a SAFETY comment; list its preconditions and who holds them";
            findings.push(Finding::new(&source.path, place.line, what));
        }
    }
    findings
}

fn has_safety_comment(lines: &[&str], line: usize) -> bool {
    let first = line.saturating_sub(1 + COMMENT_LINES);
    lines[first..line].iter().any(|line| line.contains("SAFETY:"))
}

/// The documentation right above a declaration has a section on safety.
fn has_safety_section(lines: &[&str], line: usize) -> bool {
    lines[..line - 1]
        .iter()
        .rev()
        .map(|line| line.trim())
        .take_while(|line| line.starts_with("//") || line.starts_with("#["))
        .any(|line| line.contains("# Safety") || line.contains("SAFETY:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> Vec<usize> {
        check(&Source::new(path, text)).iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn planted_unsafe_code_outside_the_fence_is_found() {
        let text = "//! A\n// SAFETY: one\nfn a() { unsafe { b() } }\n";
        assert_eq!(found("dataplane/src/worker/mod.rs", text), [3]);
        assert_eq!(found("dataplane/dma/src/region.rs", text), Vec::<usize>::new());
        assert_eq!(found("dataplane/src/packet.rs", text), Vec::<usize>::new());
    }

    #[test]
    fn planted_unsafe_code_without_a_reason_is_found() {
        let in_dma = |text: &str| found("dataplane/dma/src/a.rs", text);
        assert_eq!(in_dma("//! A\nfn a() {\n    unsafe { b() }\n}\n"), [3]);
        assert_eq!(in_dma("//! A\nunsafe impl Send for A {}\n"), [2]);
        assert_eq!(in_dma("//! A\n/// Text.\nunsafe fn a() {}\n"), [3]);
        let text = "//! A\n/// Text.\n/// # Safety\n/// `p` lives.\n#[inline]\nunsafe fn a() {}\n";
        assert_eq!(in_dma(text), Vec::<usize>::new());
    }

    #[test]
    fn unsafe_code_inside_a_macro_call_counts() {
        let text = "//! A\nfn a() { assert!(unsafe { b() }); }\n";
        assert_eq!(found("dataplane/src/worker/mod.rs", text).len(), 2);
    }

    #[test]
    fn the_word_in_a_string_or_comment_does_not_count() {
        let text = "//! unsafe\nconst A: &str = \"unsafe {\"; // unsafe\n";
        assert_eq!(found("dataplane/src/worker/mod.rs", text), Vec::<usize>::new());
    }
}
