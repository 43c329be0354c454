//! What the demo observed by other programs than `outboard-bench`: printed when it is observed,
//! and handed to the report as `{"facts": […]}` in the form of bench/src/schema.rs.

use crate::error::Error;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// One observation.
#[derive(Clone, Debug, Default)]
pub struct Fact {
    /// `throughput`, `reach`, `isolation` or `note`.
    pub kind: &'static str,
    /// What was observed.
    pub title: String,
    /// The path, as in measurements: "Outboard", "kernel bridge + VXLAN".
    pub path: String,
    /// Whether it is as it should be; `None` for a plain figure.
    pub ok: Option<bool>,
    /// The figure and its unit.
    pub value: Option<(f64, &'static str)>,
    /// One line of explanation.
    pub text: String,
    /// What a program printed, when a reader wants to see it whole; several lines.
    pub output: String,
    /// The command that showed it.
    pub command: String,
}

impl Fact {
    fn json(&self) -> Value {
        json!({
            "kind": self.kind,
            "title": self.title,
            "path": self.path,
            "ok": self.ok,
            "value": self.value.map(|(value, _)| value),
            "unit": self.value.map_or("", |(_, unit)| unit),
            "text": self.text,
            "output": self.output,
            "command": self.command,
        })
    }

    fn line(&self) -> String {
        let verdict = match self.ok {
            Some(true) => "ok  ",
            Some(false) => "FAIL",
            None => "    ",
        };
        let value = self.value.map_or(String::new(), |(value, unit)| format!(" {value:.2} {unit}"));
        let line = format!("  {verdict}  {}:{value} {}", self.title, self.text);
        let output: String =
            self.output.lines().map(|line| format!("\n          {line}")).collect();
        line.trim_end().to_string() + output.trim_end()
    }
}

/// All observations of a run.
#[derive(Debug, Default)]
pub struct Facts(Vec<Fact>);

impl Facts {
    /// Prints and keeps one.
    pub fn note(&mut self, fact: Fact) {
        println!("{}", fact.line());
        self.0.push(fact);
    }

    /// Titles of what is not as it should be.
    pub fn wrong(&self) -> Vec<String> {
        let wrong = self.0.iter().filter(|fact| fact.ok == Some(false));
        wrong.map(|fact| format!("{} ({})", fact.title, fact.path)).collect()
    }

    /// Writes them for the report.
    pub fn write(&self, file: &Path) -> Result<(), Error> {
        let facts: Vec<Value> = self.0.iter().map(Fact::json).collect();
        let text = format!("{:#}\n", json!({ "facts": facts }));
        fs::write(file, text).map_err(Error::file("write", file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_named_and_a_plain_figure_is_not() {
        let fact = |ok: Option<bool>| Fact {
            kind: "reach",
            title: "red: ping".into(),
            path: "Outboard".into(),
            ok,
            value: Some((0.25, "ms")),
            text: "5 of 5 answered".into(),
            command: "ping".into(),
            ..Fact::default()
        };
        let mut facts = Facts::default();
        for ok in [None, Some(true), Some(false)] {
            facts.note(fact(ok));
        }
        assert_eq!(facts.wrong(), ["red: ping (Outboard)"]);
        assert_eq!(fact(Some(true)).line(), "  ok    red: ping: 0.25 ms 5 of 5 answered");
        assert_eq!(fact(None).json()["ok"], Value::Null);
        assert_eq!(fact(None).json()["unit"], "ms");
        let shown = Fact { output: "+   port\n    mtu\n".into(), ..fact(Some(true)) };
        assert!(shown.line().ends_with("answered\n          +   port\n              mtu"));
        assert_eq!(shown.json()["output"], "+   port\n    mtu\n");
    }
}
