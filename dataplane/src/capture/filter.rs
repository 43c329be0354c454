//! The filter language of `outboard capture`: tcpdump's words for what a switch carries, and
//! `vni` and `inner` for what is in tunnels.
//!
//! ```text
//! udp port 53 and not host 10.0.0.2
//! src net 10.0.0.0/8 or ip6
//! vni 100 and inner (icmp or arp)
//! ```
//!
//! The text is checked whole by whoever asks; a worker runs the result on every packet without
//! allocating.

use super::look::{Headers, Look};
use outboard_wire::{IpPrefix, Mac, ethernet, ipv4, ipv6};
use std::net::IpAddr;

/// The most characters of a filter.
const TEXT_MAX: usize = 4096;
/// The deepest nesting of parentheses, `not` and `inner`: a worker's stack bounds it.
const DEPTH_MAX: usize = 32;

/// What is wrong with a filter's text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("filter, at \"{at}\": {what}")]
pub struct FilterError {
    /// The word, or the end.
    at: String,
    /// What is wrong, and what would be right.
    what: String,
}

/// A checked filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter(Option<Expression>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Expression {
    All(Vec<Expression>),
    Any(Vec<Expression>),
    Not(Box<Expression>),
    /// Asks about the packet in the tunnel.
    Inner(Box<Expression>),
    Is(Test),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Test {
    Ethertype(u16),
    Protocol(u8),
    Net(Side, IpPrefix),
    Ports(Side, u16, u16),
    Mac(Side, Mac),
    Vlan(Option<u16>),
    Vxlan,
    Vni(u32),
    /// At most so many bytes.
    Less(usize),
    /// At least so many bytes.
    Greater(usize),
}

/// Which of two fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Source,
    Destination,
    Either,
}

impl Side {
    fn holds<T>(self, pair: Option<(T, T)>, is_right: impl Fn(T) -> bool) -> bool {
        pair.is_some_and(|(source, destination)| match self {
            Side::Source => is_right(source),
            Side::Destination => is_right(destination),
            Side::Either => is_right(source) || is_right(destination),
        })
    }
}

impl Filter {
    /// Reads a filter; an empty one takes every packet.
    pub fn parse(text: &str) -> Result<Filter, FilterError> {
        if text.len() > TEXT_MAX {
            let what = format!("it is longer than {TEXT_MAX} characters");
            return Err(FilterError { at: "its end".into(), what });
        }
        let words = words(text);
        if words.is_empty() {
            return Ok(Filter(None));
        }
        let mut reader = Reader { words: &words, depth: 0 };
        let expression = reader.any_of()?;
        match reader.words.first() {
            None => Ok(Filter(Some(expression))),
            Some(_) => reader.wrong("expected \"and\", \"or\" or the end"),
        }
    }

    /// Whether the filter takes a packet, of which `head` are the first bytes and `bytes` there
    /// are. What is too short for an Ethernet header is taken only by an empty filter.
    #[inline]
    pub fn takes(&self, head: &[u8], bytes: usize) -> bool {
        let Some(expression) = &self.0 else { return true };
        Look::at(head, bytes).is_some_and(|look| expression.holds(&look, &look.outer))
    }
}

impl Expression {
    fn holds(&self, look: &Look, headers: &Headers) -> bool {
        match self {
            Expression::All(parts) => parts.iter().all(|part| part.holds(look, headers)),
            Expression::Any(parts) => parts.iter().any(|part| part.holds(look, headers)),
            Expression::Not(part) => !part.holds(look, headers),
            Expression::Inner(part) => {
                let inner = look.tunnel.as_ref().and_then(|(_, inner)| inner.as_ref());
                inner.is_some_and(|inner| part.holds(look, inner))
            }
            Expression::Is(test) => test.holds(look, headers),
        }
    }
}

impl Test {
    fn holds(self, look: &Look, headers: &Headers) -> bool {
        match self {
            Test::Ethertype(ethertype) => headers.ethertype == ethertype,
            Test::Protocol(protocol) => headers.protocol == Some(protocol),
            Test::Net(side, net) => side.holds(headers.addresses, |address| net.contains(address)),
            Test::Ports(side, low, high) => {
                side.holds(headers.ports, |port| (low..=high).contains(&port))
            }
            Test::Mac(side, mac) => side.holds(Some(headers.macs), |known| known == mac),
            Test::Vlan(id) => headers.vlan.is_some_and(|vlan| id.is_none_or(|id| id == vlan)),
            Test::Vxlan => look.tunnel.is_some(),
            Test::Vni(vni) => look.tunnel.is_some_and(|(found, _)| found == vni),
            Test::Less(bytes) => look.bytes <= bytes,
            Test::Greater(bytes) => look.bytes >= bytes,
        }
    }
}

/// Signs that are words without spaces around them.
const SIGNS: [&str; 5] = ["(", ")", "!", "&&", "||"];

/// Words, and signs as words of their own.
fn words(text: &str) -> Vec<&str> {
    let mut words = Vec::new();
    for part in text.split_whitespace() {
        let mut rest = part;
        let first_sign = |text: &str| {
            let found = SIGNS.iter().filter_map(|sign| Some((text.find(sign)?, sign.len())));
            found.min()
        };
        while let Some((at, len)) = first_sign(rest) {
            words.extend((at > 0).then(|| &rest[..at]));
            words.push(&rest[at..at + len]);
            rest = &rest[at + len..];
        }
        words.extend((!rest.is_empty()).then_some(rest));
    }
    words
}

struct Reader<'a> {
    words: &'a [&'a str],
    depth: usize,
}

type Read = Result<Expression, FilterError>;

impl<'a> Reader<'a> {
    fn wrong<T>(&self, what: impl Into<String>) -> Result<T, FilterError> {
        let at = self.words.first().map_or("the end", |word| word);
        Err(FilterError { at: at.chars().take(40).collect(), what: what.into() })
    }

    fn take(&mut self, choices: &[&str]) -> bool {
        let found = self.words.first().is_some_and(|word| choices.contains(word));
        if found {
            self.words = &self.words[1..];
        }
        found
    }

    fn any_of(&mut self) -> Read {
        let mut parts = vec![self.all_of()?];
        while self.take(&["or", "||"]) {
            parts.push(self.all_of()?);
        }
        Ok(Expression::Any(parts))
    }

    fn all_of(&mut self) -> Read {
        let mut parts = vec![self.one()?];
        while self.take(&["and", "&&"]) {
            parts.push(self.one()?);
        }
        Ok(Expression::All(parts))
    }

    fn one(&mut self) -> Read {
        if self.depth == DEPTH_MAX {
            return self.wrong(format!("nested deeper than {DEPTH_MAX}"));
        }
        self.depth += 1;
        let expression = if self.take(&["not", "!"]) {
            Expression::Not(Box::new(self.one()?))
        } else if self.take(&["inner"]) {
            Expression::Inner(Box::new(self.one()?))
        } else if self.take(&["("]) {
            let expression = self.any_of()?;
            if !self.take(&[")"]) {
                return self.wrong("expected \")\"");
            }
            expression
        } else {
            self.primitive()?
        };
        self.depth -= 1;
        Ok(expression)
    }

    /// A protocol, a test, or a protocol with the test that follows it, as in `udp port 53`.
    fn primitive(&mut self) -> Read {
        let kinds: [(&str, Test); 8] = [
            ("ip", Test::Ethertype(ethernet::IPV4)),
            ("ip6", Test::Ethertype(ethernet::IPV6)),
            ("arp", Test::Ethertype(ethernet::ARP)),
            ("tcp", Test::Protocol(ipv4::TCP)),
            ("udp", Test::Protocol(ipv4::UDP)),
            ("icmp", Test::Protocol(ipv4::ICMP)),
            ("icmp6", Test::Protocol(ipv6::ICMP)),
            ("vxlan", Test::Vxlan),
        ];
        let Some(word) = self.words.first() else { return self.wrong(WANTED) };
        let Some((_, kind)) = kinds.iter().find(|(name, _)| name == word) else {
            return self.test().map(Expression::Is);
        };
        self.words = &self.words[1..];
        let kind = Expression::Is(*kind);
        let follows = ["src", "dst", "host", "net", "port", "portrange"];
        match self.words.first().is_some_and(|word| follows.contains(word)) {
            true => Ok(Expression::All(vec![kind, Expression::Is(self.test()?)])),
            false => Ok(kind),
        }
    }

    fn test(&mut self) -> Result<Test, FilterError> {
        if self.take(&["ether"]) {
            let side = self.side();
            self.take(&["host"]);
            let mac =
                self.value("a MAC address, such as 02:00:00:00:00:01", |word| word.parse().ok())?;
            return Ok(Test::Mac(side, mac));
        }
        if self.take(&["vlan"]) {
            let id = self.words.first().and_then(|word| word.parse().ok());
            self.words = &self.words[usize::from(id.is_some())..];
            return Ok(Test::Vlan(id));
        }
        if self.take(&["vni"]) {
            let vni = |word: &str| word.parse().ok().filter(|vni| *vni < 1 << 24);
            return self.value("a VNI from 0 to 16777215", vni).map(Test::Vni);
        }
        for (name, test) in [("less", Test::Less as fn(usize) -> Test), ("greater", Test::Greater)]
        {
            if self.take(&[name]) {
                return self.value("a number of bytes", |word| word.parse().ok()).map(test);
            }
        }
        let side = self.side();
        if self.take(&["port"]) {
            let port = self.value("a port", |word| word.parse().ok())?;
            return Ok(Test::Ports(side, port, port));
        }
        if self.take(&["portrange"]) {
            let (low, high) = self.value("two ports, such as 5000-5010", |word| {
                let (low, high) = word.split_once('-')?;
                low.parse().ok().zip(high.parse().ok()).filter(|(low, high)| low <= high)
            })?;
            return Ok(Test::Ports(side, low, high));
        }
        if self.take(&["net"]) {
            let want = "a network, such as 10.0.0.0/8 or fd00::/8";
            return self.value(want, prefix).map(|net| Test::Net(side, net));
        }
        let is_named = self.take(&["host"]) || side != Side::Either;
        let want = if is_named { "an address" } else { WANTED };
        let address = self.value(want, |word| word.parse::<IpAddr>().ok())?;
        Ok(Test::Net(side, IpPrefix::host(address)))
    }

    fn side(&mut self) -> Side {
        if self.take(&["src"]) {
            Side::Source
        } else if self.take(&["dst"]) {
            Side::Destination
        } else {
            Side::Either
        }
    }

    fn value<T>(&mut self, want: &str, read: impl Fn(&str) -> Option<T>) -> Result<T, FilterError> {
        match self.words.first().and_then(|word| read(word)) {
            Some(value) => {
                self.words = &self.words[1..];
                Ok(value)
            }
            None => self.wrong(format!("expected {want}")),
        }
    }
}

/// What a primitive may begin with.
const WANTED: &str = "an address, or one of: ip ip6 arp tcp udp icmp icmp6 vxlan vni vlan src dst \
                      host net port portrange ether less greater not inner (";

/// A prefix; host bits are ignored, and an address alone is a network of one.
fn prefix(word: &str) -> Option<IpPrefix> {
    match word.split_once('/') {
        Some((address, len)) => IpPrefix::containing(address.parse().ok()?, len.parse().ok()?),
        None => word.parse().ok().map(IpPrefix::host),
    }
}

#[cfg(test)]
mod tests;
