//! What is compared with what: groups, ratios, spreads; shared by the text and the page.

use crate::schema::{Measurement, Target};

/// Measurements that are compared with each other, in the order of their first appearance.
pub struct Group<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its measurements.
    pub members: Vec<&'a Measurement>,
}

impl<'a> Group<'a> {
    /// The measurement by which the others are divided.
    pub fn baseline(&self) -> Option<&'a Measurement> {
        self.members.iter().copied().find(|m| m.baseline)
    }

    /// p50 divided by the baseline's.
    pub fn ratio(&self, m: &Measurement) -> Option<f64> {
        let median = |m: &Measurement| m.latency.as_ref()?.p50_ns.map(|ns| ns as f64);
        Some(median(m)? / median(self.baseline()?)?.max(1.0))
    }

    /// The ratio as a cell.
    pub fn ratio_text(&self, m: &Measurement) -> String {
        match self.ratio(m) {
            _ if m.baseline => "baseline".into(),
            Some(ratio) => format!("{ratio:.2} ×"),
            None => String::new(),
        }
    }
}

/// Groups in the order of their first member.
pub fn groups(measurements: &[Measurement]) -> Vec<Group<'_>> {
    let mut groups: Vec<Group> = Vec::new();
    for m in measurements {
        match groups.iter_mut().find(|group| group.name == m.group) {
            Some(group) => group.members.push(m),
            None => groups.push(Group { name: &m.group, members: vec![m] }),
        }
    }
    groups
}

/// Smallest and largest; `None` without runs.
pub fn spread(runs: &[f64]) -> Option<(f64, f64)> {
    let low = runs.iter().copied().min_by(f64::total_cmp)?;
    let high = runs.iter().copied().max_by(f64::total_cmp)?;
    Some((low, high))
}

/// Median; the mean of the two in the middle for an even number.
pub fn median(runs: &[f64]) -> Option<f64> {
    let mut sorted = runs.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

/// Whether the target's other form is met.
pub fn either_met(target: &Target, all: &[Target]) -> bool {
    let Some(either) = &target.either else { return false };
    all.iter().any(|other| other.id == *either && other.met == Some(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_spreads() {
        assert_eq!(
            (median(&[]), median(&[3.0]), median(&[5.0, 1.0])),
            (None, Some(3.0), Some(3.0))
        );
        assert_eq!(median(&[9.0, 1.0, 5.0]), Some(5.0));
        assert_eq!(spread(&[2.0, 9.0, 1.0]), Some((1.0, 9.0)));
    }

    #[test]
    fn the_other_form_counts() {
        let row = |id: &str, met, either: Option<&str>| Target {
            id: id.into(),
            met: Some(met),
            either: either.map(str::to_owned),
            ..Target::default()
        };
        let all = [row("a", false, Some("b")), row("b", true, Some("a")), row("c", false, None)];
        assert!(either_met(&all[0], &all) && !either_met(&all[2], &all));
    }
}
