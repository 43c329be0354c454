//! `GET /metrics` over HTTP/1.1, one answer per connection. One thread serves all clients without
//! waiting for any: at most [`CLIENTS_MAX`] at once, requests of at most [`REQUEST_BYTES_MAX`]
//! bytes, and each through within [`DEADLINE`].

use crate::control::api::Source;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The most clients at once; one more, and the one that is closest to its deadline is closed.
const CLIENTS_MAX: usize = 16;
/// The longest request.
const REQUEST_BYTES_MAX: usize = 8192;
const HEADERS_MAX: usize = 64;
/// How long a client may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// How long the thread rests when the process has no descriptor left to accept with.
const ACCEPT_REST: Duration = Duration::from_millis(100);
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Why metrics cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve metrics at {listen}: {source}; set another `listen` in [metrics]")]
pub struct MetricsError {
    listen: SocketAddr,
    source: io::Error,
}

/// The endpoint and its thread; both end when it is dropped.
#[derive(Debug)]
pub struct Metrics {
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Metrics {
    /// Takes the address, so that a second daemon is refused before anything else is made.
    pub fn bind(listen: SocketAddr) -> Result<TcpListener, MetricsError> {
        let listener = TcpListener::bind(listen).and_then(|listener| {
            listener.set_nonblocking(true)?;
            Ok(listener)
        });
        listener.map_err(|source| MetricsError { listen, source })
    }

    /// Serves from a thread of its own.
    pub fn serve(listener: TcpListener, source: impl Source + 'static) -> io::Result<Metrics> {
        let (stop, stopped) = UnixStream::pair()?;
        let server = Server { listener, stopped, source: Box::new(source), clients: Vec::new() };
        let thread = std::thread::Builder::new().name("metrics".into()).spawn(|| server.run())?;
        Ok(Metrics { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Metrics {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Server {
    listener: TcpListener,
    /// Ends the thread when its other end closes.
    stopped: UnixStream,
    source: Box<dyn Source>,
    clients: Vec<Client>,
}

struct Client {
    stream: TcpStream,
    request: Vec<u8>,
    /// The answer; while there is one, what still comes is of no interest.
    answer: Vec<u8>,
    sent_bytes: usize,
    deadline: Instant,
}

#[derive(PartialEq, Eq)]
enum Fate {
    Keep,
    Close,
}

impl Server {
    fn run(mut self) {
        loop {
            let mut fds = vec![
                PollFd::new(&self.stopped, PollFlags::IN),
                PollFd::new(&self.listener, PollFlags::IN),
            ];
            for client in &self.clients {
                let is_asking = client.answer.is_empty();
                let wanted = if is_asking { PollFlags::IN } else { PollFlags::OUT };
                fds.push(PollFd::new(&client.stream, wanted));
            }
            let nearest = self.clients.iter().map(|client| client.deadline).min();
            let timeout = nearest.map(|deadline| {
                let left = deadline.saturating_duration_since(Instant::now());
                Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() }
            });
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return tracing::error!("the thread of metrics ends: {errno}"),
            }
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            if ready[0] {
                return;
            }
            let (now, source) = (Instant::now(), &*self.source);
            let mut index = 1;
            self.clients.retain_mut(|client| {
                index += 1;
                let fate = if ready[index] { client.turn(source) } else { Fate::Keep };
                fate == Fate::Keep && client.deadline > now
            });
            if ready[1] {
                self.accept(now);
            }
        }
    }

    fn accept(&mut self, now: Instant) {
        let stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if is_transient(&error) => return,
            Err(error) => {
                // Out of descriptors: the connection stays queued, so poll returns at once.
                tracing::warn!("metrics cannot accept: {error}");
                return std::thread::sleep(ACCEPT_REST);
            }
        };
        if stream.set_nonblocking(true).is_err() {
            return;
        }
        if self.clients.len() == CLIENTS_MAX {
            let nearest = self.clients.iter().enumerate().min_by_key(|(_, client)| client.deadline);
            let index = nearest.map_or(0, |(index, _)| index);
            self.clients.swap_remove(index);
        }
        let (request, answer) = (Vec::new(), Vec::new());
        let deadline = now + DEADLINE;
        let mut client = Client { stream, request, answer, sent_bytes: 0, deadline };
        // A request usually is there already: it is served before another client can push it out.
        if client.turn(&*self.source) == Fate::Keep {
            self.clients.push(client);
        }
    }
}

impl Client {
    fn turn(&mut self, source: &dyn Source) -> Fate {
        if self.answer.is_empty() {
            let mut chunk = [0; 2048];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Fate::Close,
                Ok(count) => self.request.extend_from_slice(&chunk[..count]),
                Err(error) if is_transient(&error) => return Fate::Keep,
                Err(_) => return Fate::Close,
            }
            match answer(&self.request, || super::text(&source.snapshot())) {
                Some(answer) => self.answer = answer,
                None => return Fate::Keep,
            }
        }
        while self.sent_bytes < self.answer.len() {
            match self.stream.write(&self.answer[self.sent_bytes..]) {
                Ok(count @ 1..) => self.sent_bytes += count,
                Err(error) if is_transient(&error) => return Fate::Keep,
                _ => return Fate::Close,
            }
        }
        let _ = self.stream.shutdown(Shutdown::Write);
        Fate::Close
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// The answer to what was received so far; `None`: there must be more.
pub(super) fn answer(request: &[u8], text: impl FnOnce() -> String) -> Option<Vec<u8>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut headers);
    match parsed.parse(request) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) if request.len() < REQUEST_BYTES_MAX => return None,
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return Some(refusal("431 Request Header Fields Too Large", "the request is too long"));
        }
        Err(_) => return Some(refusal("400 Bad Request", "this is no HTTP request")),
    }
    let path = parsed.path.unwrap_or("").split('?').next();
    Some(match (parsed.method, path) {
        (Some("GET"), Some("/metrics")) => respond("200 OK", TEXT, &text(), true),
        (Some("HEAD"), Some("/metrics")) => respond("200 OK", TEXT, &text(), false),
        (Some("GET" | "HEAD"), _) => refusal("404 Not Found", "ask for /metrics"),
        _ => refusal("405 Method Not Allowed", "ask with GET"),
    })
}

fn refusal(status: &str, why: &str) -> Vec<u8> {
    respond(status, "text/plain; charset=utf-8", &format!("{why}\n"), true)
}

fn respond(status: &str, kind: &str, body: &str, with_body: bool) -> Vec<u8> {
    let allow = if status.starts_with("405") { "Allow: GET, HEAD\r\n" } else { "" };
    let len = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len}\r\n{allow}\
         Connection: close\r\n\r\n"
    );
    let mut bytes = head.into_bytes();
    if with_body {
        bytes.extend_from_slice(body.as_bytes());
    }
    bytes
}
