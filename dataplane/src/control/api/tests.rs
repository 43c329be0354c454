//! Real sockets, well-behaved and hostile clients.

use super::*;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicU32, Ordering};

/// A directory that ends with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let unique = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("outboard-api-{}-{unique}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Scratch(path)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("run/a.sock")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn source() -> Stats {
    Stats { instance: "host-a".into(), uptime_s: 7, ..Stats::default() }
}

/// A snapshot too large for a socket's buffer.
fn large_source() -> Stats {
    Stats { instance: "x".repeat(8 << 20), ..Stats::default() }
}

/// A connection that fails instead of hanging the test.
fn connect(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(60))).unwrap();
    stream
}

/// Reads until the server closes.
fn closed(mut stream: UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => bytes,
        Err(error) if error.kind() == ErrorKind::ConnectionReset => bytes,
        Err(error) => panic!("the server did not close: {error}"),
    }
}

#[test]
fn the_snapshot_arrives_and_the_socket_goes_with_the_api() {
    let scratch = Scratch::new();
    let api = Api::start(&scratch.socket(), source).unwrap();
    assert_eq!(ask_stats(&scratch.socket()).unwrap(), source());
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&scratch.socket()), 0o660);
    assert_eq!(mode(scratch.socket().parent().unwrap()), 0o750);
    drop(api);
    assert!(!scratch.socket().exists());
    let error = ask_stats(&scratch.socket()).unwrap_err();
    assert!(matches!(error, AskError::NoSocket { .. }), "{error}");
}

#[test]
fn a_socket_in_use_is_left_alone() {
    let scratch = Scratch::new();
    let _api = Api::start(&scratch.socket(), source).unwrap();
    let error = Api::start(&scratch.socket(), source).unwrap_err();
    assert!(matches!(error, ApiError::InUse { .. }), "{error}");
    assert_eq!(ask_stats(&scratch.socket()).unwrap(), source());
}

#[test]
fn a_stale_socket_is_replaced() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.0.join("run")).unwrap();
    drop(UnixListener::bind(scratch.socket()).unwrap());
    let error = ask_stats(&scratch.socket()).unwrap_err();
    assert!(matches!(error, AskError::NobodyThere { .. }), "{error}");
    let _api = Api::start(&scratch.socket(), source).unwrap();
    assert_eq!(ask_stats(&scratch.socket()).unwrap(), source());
}

#[test]
fn what_is_no_socket_is_left_alone() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.0.join("run")).unwrap();
    fs::write(scratch.socket(), "precious").unwrap();
    let error = Api::start(&scratch.socket(), source).unwrap_err();
    assert!(matches!(error, ApiError::Bind { source: SocketError::NotASocket { .. } }), "{error}");
    assert_eq!(fs::read_to_string(scratch.socket()).unwrap(), "precious");

    fs::remove_file(scratch.socket()).unwrap();
    let stale = scratch.0.join("stale.sock");
    drop(UnixListener::bind(&stale).unwrap());
    symlink(&stale, scratch.socket()).unwrap();
    let error = Api::start(&scratch.socket(), source).unwrap_err();
    assert!(matches!(error, ApiError::Bind { source: SocketError::NotASocket { .. } }), "{error}");
    assert!(stale.exists());
}

#[test]
fn a_large_answer_arrives_whole() {
    let scratch = Scratch::new();
    let _api = Api::start(&scratch.socket(), large_source).unwrap();
    assert_eq!(ask_stats(&scratch.socket()).unwrap(), large_source());
}

#[test]
fn requests_are_answered_one_by_one_on_one_connection() {
    let scratch = Scratch::new();
    let _api = Api::start(&scratch.socket(), source).unwrap();
    let mut stream = connect(&scratch.socket());
    stream.write_all(b"nonsense\n{\"get\":\"stats\"}\n{\"get\":").unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().starts_with(r#"{"error":"not understood"#));
    assert!(lines.next().unwrap().unwrap().starts_with(r#"{"stats":{"instance":"host-a""#));
    stream.write_all(b"\"stats\"}\n").unwrap();
    assert!(lines.next().unwrap().unwrap().starts_with(r#"{"stats":"#));
}

#[test]
fn a_request_has_a_longest_length() {
    let scratch = Scratch::new();
    let _api = Api::start(&scratch.socket(), source).unwrap();
    let mut request = br#"{"get":"stats"}"#.to_vec();
    request.resize(REQUEST_BYTES_MAX - 1, b' ');
    request.push(b'\n');
    let mut stream = connect(&scratch.socket());
    stream.write_all(&request).unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    assert!(line.starts_with(r#"{"stats":"#), "{line}");

    let mut stream = connect(&scratch.socket());
    // This test is the daemon's own user: it may apply.
    stream.write_all(&vec![b' '; apply::APPLY_BYTES_MAX]).unwrap();
    let answer = closed(stream);
    assert!(answer.starts_with(br#"{"error":"a request has at most 2101248"#));
}

#[test]
fn slow_clients_are_closed_and_delay_nobody() {
    let scratch = Scratch::new();
    let _api = Api::start(&scratch.socket(), large_source).unwrap();
    // One never finishes its request, one never reads its answer.
    let mut mute = connect(&scratch.socket());
    mute.write_all(b"{").unwrap();
    let mut deaf = connect(&scratch.socket());
    deaf.write_all(b"{\"get\":\"stats\"}\n").unwrap();
    assert_eq!(ask_stats(&scratch.socket()).unwrap(), large_source());
    assert!(closed(mute).is_empty());
    let answer = closed(deaf);
    assert!(answer.len() < 8 << 20, "{} bytes", answer.len());
    assert_eq!(ask_stats(&scratch.socket()).unwrap(), large_source());
}

#[test]
fn a_crowd_does_not_keep_others_out() {
    let scratch = Scratch::new();
    let _api = Api::start(&scratch.socket(), source).unwrap();
    let crowd: Vec<_> = (0..CLIENTS_MAX + 8).map(|_| connect(&scratch.socket())).collect();
    assert_eq!(ask_stats(&scratch.socket()).unwrap(), source());
    for stream in crowd {
        assert!(closed(stream).is_empty());
    }
}

#[test]
fn clients_that_leave_do_no_harm() {
    let scratch = Scratch::new();
    let _api = Api::start(&scratch.socket(), source).unwrap();
    for _ in 0..200 {
        let mut stream = connect(&scratch.socket());
        stream.write_all(&b"{\"get\":\"stats\"}\n".repeat(200)).unwrap();
    }
    assert_eq!(ask_stats(&scratch.socket()).unwrap(), source());
}
