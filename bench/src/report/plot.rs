//! Percentile plots as SVG: latency over the share of requests that were at least so fast.
//!
//! The horizontal axis counts nines (90 %, 99 %, 99.9 % … at equal distances), so that the tail
//! has as much room as the body; the vertical axis is logarithmic. Colours are classes `c0` … that
//! the page defines for light and dark.

use super::html::escape;
use crate::latency;
use std::fmt::Write;

/// One line of a plot.
pub struct Series<'a> {
    /// Name at the line's end.
    pub label: &'a str,
    /// Index of its colour class.
    pub color: usize,
    /// `[quantile, nanoseconds]`, rising.
    pub curve: &'a [(f64, u64)],
    /// Samples and the largest of them.
    pub end: (u64, u64),
}

const WIDTH: f64 = 920.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 74.0;
const RIGHT: f64 = 46.0;
const TOP: f64 = 16.0;
const BOTTOM: f64 = 52.0;

/// What maps figures to places.
struct Frame {
    nines: f64,
    low: f64,
    high: f64,
}

impl Frame {
    /// Wide enough for all series, to whole steps of 1, 2, 5.
    fn around(series: &[Series]) -> Frame {
        let mut frame = Frame { nines: 2.0, low: f64::MAX, high: f64::MIN };
        for one in series {
            let (samples, max_ns) = one.end;
            frame.nines = frame.nines.max((samples.max(1) as f64).log10());
            let values = one.curve.iter().map(|(_, ns)| *ns).chain([max_ns]);
            for ns in values {
                frame.low = frame.low.min((ns.max(1) as f64).log10());
                frame.high = frame.high.max((ns.max(1) as f64).log10());
            }
        }
        frame.low = step_down(frame.low - 0.02);
        frame.high = -step_down(-frame.high - 0.02);
        frame.high = frame.high.max(frame.low + 0.5);
        frame
    }

    fn x(&self, nines: f64) -> f64 {
        LEFT + nines / self.nines * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, ns: f64) -> f64 {
        let share = (ns.max(1.0).log10() - self.low) / (self.high - self.low);
        HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
    }
}

/// The next of 1, 2, 5 times a power of ten at or below, all as logarithms.
fn step_down(value: f64) -> f64 {
    let fraction = value - value.floor();
    let steps = [0.0, 2f64.log10(), 5f64.log10()];
    value.floor() + steps.into_iter().rev().find(|step| *step <= fraction + 1e-9).unwrap_or(0.0)
}

/// The plot; empty when no series has points.
pub fn percentiles(title: &str, series: &[Series]) -> String {
    if series.iter().all(|one| one.curve.is_empty()) {
        return String::new();
    }
    let frame = Frame::around(series);
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">\n",
        escape(title)
    );
    grid(&mut svg, &frame);
    for one in series.iter().rev() {
        line(&mut svg, &frame, one);
    }
    svg + "</svg>\n"
}

fn grid(svg: &mut String, frame: &Frame) {
    let (left, right) = (frame.x(0.0), frame.x(frame.nines));
    let bottom = HEIGHT - BOTTOM;
    let decades = frame.high - frame.low;
    for power in frame.low.floor() as i32..=frame.high.ceil() as i32 {
        for (step, labelled) in [(1.0, true), (2.0, decades < 2.5), (5.0, decades < 3.5)] {
            let ns = step * 10f64.powi(power);
            let at = ns.log10();
            if at < frame.low - 1e-9 || at > frame.high + 1e-9 || !labelled {
                continue;
            }
            let y = frame.y(ns);
            let class = if step == 1.0 { "grid" } else { "grid minor" };
            let text = axis_text(ns);
            let _ = writeln!(
                svg,
                "<line class=\"{class}\" x1=\"{left:.1}\" y1=\"{y:.1}\" x2=\"{right:.1}\" \
                 y2=\"{y:.1}\"/><text class=\"axis\" x=\"{:.1}\" y=\"{:.1}\" \
                 text-anchor=\"end\">{text}</text>",
                left - 10.0,
                y + 4.5
            );
        }
    }
    let names = ["0 %", "90 %", "99 %", "99.9 %", "99.99 %", "99.999 %", "99.9999 %", "7 nines"];
    let marks = std::iter::once((0.301, "50 %"))
        .chain(names.iter().enumerate().map(|(nines, name)| (nines as f64, *name)));
    for (nines, name) in marks.filter(|(nines, _)| *nines <= frame.nines + 1e-9) {
        let x = frame.x(nines);
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{bottom:.1}\"/>\
             <text class=\"axis\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{name}</text>",
            bottom + 20.0
        );
    }
    let _ = writeln!(
        svg,
        "<text class=\"axis title\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">share of \
         requests that took at most this long</text>",
        f64::midpoint(left, right),
        HEIGHT - 8.0
    );
}

/// `20 µs`
fn axis_text(ns: f64) -> String {
    let (value, unit) = match ns {
        ns if ns < 1e3 => (ns, "ns"),
        ns if ns < 1e6 => (ns / 1e3, "µs"),
        ns if ns < 1e9 => (ns / 1e6, "ms"),
        ns => (ns / 1e9, "s"),
    };
    format!("{value:.0} {unit}")
}

/// The curve as far as samples carry it, then dotted to the largest sample, a hollow point.
fn line(svg: &mut String, frame: &Frame, series: &Series) {
    let place = |q: f64, ns: u64| (frame.x(-(1.0 - q).log10()), frame.y(ns as f64));
    let Some(&(last_q, last_ns)) = series.curve.last() else { return };
    let mut path = String::new();
    for (index, &(q, ns)) in series.curve.iter().enumerate() {
        let (x, y) = place(q, ns);
        let _ = write!(path, "{}{x:.1} {y:.1}", if index == 0 { "M" } else { "L" });
    }
    let (samples, max_ns) = series.end;
    let (x, y) = place(last_q, last_ns);
    let (end_x, end_y) = (frame.x((samples as f64).log10()), frame.y(max_ns as f64));
    let class = format!("c{}", series.color);
    let (label, max) = (escape(series.label), latency::text(Some(max_ns)));
    let _ = writeln!(
        svg,
        "<g class=\"{class}\"><title>{label}</title><path class=\"line\" d=\"{path}\"/>\
         <path class=\"line rest\" d=\"M{x:.1} {y:.1}L{end_x:.1} {end_y:.1}\"/>\
         <circle class=\"max\" cx=\"{end_x:.1}\" cy=\"{end_y:.1}\" r=\"4\"><title>{label}: \
         largest of {samples} samples, {max}</title></circle></g>"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_1_2_5() {
        let log = |value: f64| value.log10();
        for (value, down) in [(10.0, 10.0), (19.0, 10.0), (20.0, 20.0), (49.0, 20.0), (99.0, 50.0)]
        {
            assert!((step_down(log(value)) - log(down)).abs() < 1e-9, "{value}");
        }
    }

    #[test]
    fn every_point_lies_inside_the_frame() {
        let curve: Vec<(f64, u64)> = (0..80)
            .map(|step| (1.0 - 10f64.powf(-f64::from(step) * 0.05), 900 << (step / 8)))
            .collect();
        let series = [Series { label: "<a>", color: 0, curve: &curve, end: (123_456, 7 << 20) }];
        let frame = Frame::around(&series);
        for &(q, ns) in &curve {
            let (x, y) = (frame.x(-(1.0 - q).log10()), frame.y(ns as f64));
            assert!((LEFT..=WIDTH - RIGHT).contains(&x) && (TOP..=HEIGHT - BOTTOM).contains(&y));
        }
        let svg = percentiles("a & b", &series);
        assert!(svg.contains("a &amp; b") && svg.contains("&lt;a&gt;"));
        assert!(svg.contains("99.99 %") && !svg.contains("NaN") && !svg.contains("inf"));
        assert_eq!(percentiles("none", &[]), "");
    }
}
