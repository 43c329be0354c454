//! One thread, all clients, no waiting for any of them.

use super::apply::{APPLY_BYTES_MAX, APPLY_DEADLINE, Desk};
use super::capture;
use super::ledger;
use super::{Answer, CLIENT_DEADLINE, CLIENTS_MAX, REQUEST_BYTES_MAX, Request, Source, What};
use crate::capture::Filter;
use crossbeam::channel::{Receiver, TryRecvError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

/// How long the thread rests when the process has no descriptor left to accept with.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// How often it is looked whether control has an answer.
const ANSWER_LOOK: Duration = Duration::from_millis(10);
/// Bytes that are received at once.
const CHUNK_BYTES: usize = 16 << 10;

/// The thread's state.
pub(super) struct Server {
    listener: UnixListener,
    /// Ends the thread when its other end closes.
    stopped: UnixStream,
    source: Box<dyn Source>,
    desk: Desk,
    clients: Vec<Client>,
}

/// A connection between two requests or within one.
struct Client {
    stream: UnixStream,
    /// Whether it may apply: root, or the daemon's own user.
    is_trusted: bool,
    /// What control is to answer.
    asked: Option<Receiver<Answer>>,
    /// Bytes of the request so far.
    request: Vec<u8>,
    /// Where its line ends, once that has come: what came is searched once, however it is cut.
    end: Option<usize>,
    /// Bytes of the answer that are still to be sent; while there are any, nothing is read.
    answer: Vec<u8>,
    sent_bytes: usize,
    deadline: Instant,
}

/// What becomes of a client.
#[derive(PartialEq, Eq)]
enum Fate {
    Keep,
    Close,
}

impl Server {
    pub(super) fn new(
        listener: UnixListener,
        stopped: UnixStream,
        source: Box<dyn Source>,
        desk: Desk,
    ) -> Server {
        Server { listener, stopped, source, desk, clients: Vec::new() }
    }

    pub(super) fn run(mut self) {
        loop {
            let ready = match self.wait() {
                Ok(ready) => ready,
                Err(error) => {
                    tracing::error!("the control socket's thread ends: {error}");
                    return;
                }
            };
            if ready.stop {
                return;
            }
            let now = Instant::now();
            let mut index = 0;
            self.clients.retain_mut(|client| {
                let ready = ready.clients[index];
                index += 1;
                let fate = match ready {
                    // Both directions are closed: nobody would read an answer.
                    events if events.intersects(PollFlags::HUP | PollFlags::ERR) => Fate::Close,
                    _ if client.asked.is_some() => client.look_for_answer(now),
                    events if !events.is_empty() || client.can_answer() => {
                        client.turn(&*self.source, &self.desk, now)
                    }
                    _ => Fate::Keep,
                };
                fate == Fate::Keep && client.deadline > now
            });
            if ready.accept {
                self.accept(now);
            }
        }
    }

    fn wait(&self) -> io::Result<Ready> {
        let mut fds = vec![
            PollFd::new(&self.stopped, PollFlags::IN),
            PollFd::new(&self.listener, PollFlags::IN),
        ];
        for client in &self.clients {
            let wanted = match client.answer.is_empty() {
                _ if client.asked.is_some() => PollFlags::empty(),
                true => PollFlags::IN,
                false => PollFlags::OUT,
            };
            fds.push(PollFd::new(&client.stream, wanted));
        }
        let now = Instant::now();
        let due = |client: &Client| match client.asked {
            Some(_) => client.deadline.min(now + ANSWER_LOOK),
            None if client.can_answer() => now,
            None => client.deadline,
        };
        let nearest = self.clients.iter().map(due).min();
        let timeout = nearest.map(|deadline| {
            let left = deadline.saturating_duration_since(now);
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() }
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        Ok(Ready {
            stop: !fds[0].revents().is_empty(),
            accept: !fds[1].revents().is_empty(),
            clients: fds[2..].iter().map(PollFd::revents).collect(),
        })
    }

    fn accept(&mut self, now: Instant) {
        let stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(error) => {
                // Out of descriptors: the connection stays queued, so poll returns at once.
                tracing::warn!("the control socket cannot accept: {error}");
                std::thread::sleep(ACCEPT_REST);
                return;
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
        let mut client = Client {
            is_trusted: is_trusted(&stream),
            stream,
            asked: None,
            request: Vec::new(),
            end: None,
            answer: Vec::new(),
            sent_bytes: 0,
            deadline: now + CLIENT_DEADLINE,
        };
        // A request usually is there already: it is served before another client can push it out.
        if client.turn(&*self.source, &self.desk, now) == Fate::Keep {
            self.clients.push(client);
        }
    }
}

/// What poll found.
struct Ready {
    stop: bool,
    accept: bool,
    clients: Vec<PollFlags>,
}

impl Client {
    /// Whether a whole request waits for its answer.
    fn can_answer(&self) -> bool {
        self.answer.is_empty() && self.asked.is_none() && self.end.is_some()
    }

    /// Sends what is left of an answer, or receives; answers one request at most, so that many
    /// requests of one client do not delay another's.
    fn turn(&mut self, source: &dyn Source, desk: &Desk, now: Instant) -> Fate {
        if !self.answer.is_empty() {
            return self.send(now);
        }
        if !self.can_answer() && self.receive() == Fate::Close {
            return Fate::Close;
        }
        let Some(end) = self.end else { return self.check_length(now) };
        match reply(&self.request[..end], source, desk, self.is_trusted) {
            Reply::Now(answer) => self.answer = line(&answer),
            Reply::Later(asked, deadline) => {
                self.asked = Some(asked);
                self.deadline = now + deadline;
            }
            Reply::Capture(request, filter) => match self.hand_over(request, filter, desk) {
                Ok(()) => return Fate::Close,
                Err(why) => self.answer = line(&Answer::Error(why)),
            },
        }
        self.request.drain(..=end);
        self.end = end_of(&self.request);
        if self.asked.is_some() { Fate::Keep } else { self.send(now) }
    }

    /// Gives the connection to a capture: whatever is said on it from now on is the capture's.
    fn hand_over(
        &self,
        request: capture::Request,
        filter: Filter,
        desk: &Desk,
    ) -> Result<(), String> {
        let stream = self.stream.try_clone().map_err(|error| format!("no descriptor: {error}"))?;
        match desk.put_capture(capture::Job { stream, request, filter }) {
            true => Ok(()),
            false => Err("too many captures wait to begin; try again".into()),
        }
    }

    /// Sends control's answer once it is there.
    fn look_for_answer(&mut self, now: Instant) -> Fate {
        let answer = match self.asked.as_ref().map(Receiver::try_recv) {
            Some(Ok(answer)) => answer,
            Some(Err(TryRecvError::Empty)) => return Fate::Keep,
            Some(Err(TryRecvError::Disconnected)) => Answer::Error("the daemon stops".into()),
            None => return Fate::Keep,
        };
        self.asked = None;
        self.answer = line(&answer);
        self.send(now)
    }

    /// The longest request of this client.
    fn bytes_max(&self) -> usize {
        if self.is_trusted { APPLY_BYTES_MAX } else { REQUEST_BYTES_MAX }
    }

    fn receive(&mut self) -> Fate {
        let mut chunk = [0; CHUNK_BYTES];
        let room = (self.bytes_max() - self.request.len()).min(CHUNK_BYTES);
        match self.stream.read(&mut chunk[..room]) {
            Ok(0) => Fate::Close,
            Ok(count) => {
                let before = self.request.len();
                self.request.extend_from_slice(&chunk[..count]);
                self.end = self.end.or(end_of(&chunk[..count]).map(|end| before + end));
                Fate::Keep
            }
            Err(error) => fate_of(&error),
        }
    }

    /// A request that fills the buffer without ending is too long.
    fn check_length(&mut self, now: Instant) -> Fate {
        let most = self.bytes_max();
        if self.request.len() < most {
            return Fate::Keep;
        }
        let what = format!("a request has at most {most} bytes");
        self.answer = line(&Answer::Error(what));
        let _ = self.send(now);
        Fate::Close
    }

    fn send(&mut self, now: Instant) -> Fate {
        while self.sent_bytes < self.answer.len() {
            match self.stream.write(&self.answer[self.sent_bytes..]) {
                Ok(0) => return Fate::Close,
                Ok(count) => self.sent_bytes += count,
                Err(error) => return fate_of(&error),
            }
        }
        self.answer.clear();
        self.sent_bytes = 0;
        self.deadline = now + CLIENT_DEADLINE;
        Fate::Keep
    }
}

/// Where the first line ends.
fn end_of(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|byte| *byte == b'\n')
}

fn fate_of(error: &io::Error) -> Fate {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::Interrupted => Fate::Keep,
        _ => Fate::Close,
    }
}

/// Whether the other end is root or runs as the same user as this process.
fn is_trusted(stream: &UnixStream) -> bool {
    let peer = rustix::net::sockopt::socket_peercred(stream).map(|peer| peer.uid);
    peer.is_ok_and(|uid| uid.is_root() || uid == rustix::process::geteuid())
}

/// The answer to one request, or who will give it.
enum Reply {
    Now(Answer),
    /// How long that may take.
    Later(Receiver<Answer>, Duration),
    Capture(capture::Request, Filter),
}

fn reply(request: &[u8], source: &dyn Source, desk: &Desk, is_trusted: bool) -> Reply {
    let refuse = |what: &str| Reply::Now(Answer::Error(what.to_string()));
    match serde_json::from_slice(request) {
        Ok(Request::Get { get: What::Stats }) => Reply::Now(Answer::Stats(source.snapshot())),
        Ok(Request::Apply { .. }) if !is_trusted => {
            refuse("only root and the daemon's own user may apply a configuration")
        }
        Ok(Request::Apply { apply }) => match desk.put(apply) {
            Some(asked) => Reply::Later(asked, APPLY_DEADLINE),
            None => refuse("another apply is being done; try again when it has ended"),
        },
        Ok(Request::Capture { .. }) if !is_trusted => {
            refuse("only root and the daemon's own user may capture packets")
        }
        Ok(Request::Capture { capture }) => match capture::check(&capture) {
            Ok(filter) => Reply::Capture(capture, filter),
            Err(why) => refuse(&why),
        },
        Ok(Request::Ledger { .. }) if !is_trusted => {
            refuse("only root and the daemon's own user may have ledgers kept")
        }
        Ok(Request::Ledger { ledger }) => match desk.looks.put(ledger) {
            Ok(asked) => {
                let deadline = ledger::PATIENCE + Duration::from_secs(ledger.seconds.into());
                Reply::Later(asked, deadline)
            }
            Err(wrong) => refuse(&wrong),
        },
        Err(_) => refuse(
            "not understood; ask {\"get\":\"stats\"}, {\"apply\":{…}}, {\"capture\":{…}} or \
             {\"ledger\":{…}}",
        ),
    }
}

fn line(answer: &Answer) -> Vec<u8> {
    let mut line = serde_json::to_vec(answer).expect("strings and numbers always serialize");
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::stats::Stats;

    #[test]
    fn any_line_gets_one_line() {
        let source = || Stats { instance: "a\nb".into(), ..Stats::default() };
        bolero::check!().with_type::<Vec<u8>>().for_each(|bytes| {
            let answer = match reply(bytes, &source, &Desk::default(), true) {
                Reply::Now(answer) => answer,
                Reply::Later(..) | Reply::Capture(..) => return,
            };
            let line = line(&answer);
            assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
            assert!(serde_json::from_slice::<Answer>(&line).is_ok());
        });
    }

    #[test]
    fn only_the_whole_request_is_understood() {
        let source = Stats::default;
        let answer = |text: &str| reply(text.as_bytes(), &source, &Desk::default(), true);
        let understood = |text: &str| matches!(answer(text), Reply::Now(Answer::Stats(_)));
        assert!(understood(r#"{"get":"stats"}"#) && understood(" { \"get\" : \"stats\" } \r"));
        for wrong in ["", "{}", r#"{"get":"x"}"#, r#"{"get":"stats","x":1}"#, "stats", "[]"] {
            assert!(!understood(wrong), "{wrong}");
        }
    }
}
