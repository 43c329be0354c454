//! A committed corpus: the fewest inputs that reach what is reached, within a size.

use super::{Target, engine, files};
use crate::error::Error;
use crate::process;
use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// Files of one corpus.
pub const MAX_FILES: usize = 32;
/// Bytes of one corpus.
pub const MAX_BYTES: u64 = 8 << 10;

/// What was kept.
#[derive(Debug, PartialEq, Eq)]
pub struct Kept {
    files: usize,
    bytes: u64,
    /// Edges and counts that the kept inputs reach, of all that any input reaches.
    reached: usize,
    of: usize,
}

impl fmt::Display for Kept {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Kept { files, bytes, reached, of } = self;
        write!(out, "kept {files} files of {bytes} bytes: {reached} of {of} features")
    }
}

/// One input and what it reaches.
#[derive(Clone, Debug)]
struct Input {
    path: PathBuf,
    bytes: u64,
    features: BTreeSet<u64>,
}

/// How many inputs are committed.
pub fn describe(corpus: &Path) -> Result<String, Error> {
    Ok(format!("{} in the corpus", files(corpus)?.len()))
}

/// Replaces the committed corpus by the best of it and of what was found.
pub fn keep(target: &Target) -> Result<Kept, Error> {
    let mut all = files(&target.corpus())?;
    all.extend(files(&target.found())?);
    all.sort();
    let inputs = measure(target, &all)?;
    let of = inputs.iter().flat_map(|input| &input.features).collect::<BTreeSet<_>>().len();
    let chosen = choose(inputs);
    let contents: Result<Vec<Vec<u8>>, Error> = chosen
        .iter()
        .map(|input| fs::read(&input.path).map_err(Error::file("read", &input.path)))
        .collect();
    let (corpus, contents) = (target.corpus(), contents?);
    if corpus.is_dir() {
        fs::remove_dir_all(&corpus).map_err(Error::file("empty", &corpus))?;
    }
    fs::create_dir_all(&corpus).map_err(Error::file("create", &corpus))?;
    for (number, content) in contents.iter().enumerate() {
        let path = corpus.join(format!("{number:02}"));
        fs::write(&path, content).map_err(Error::file("write", &path))?;
    }
    let reached = chosen.iter().flat_map(|input| &input.features).collect::<BTreeSet<_>>().len();
    let bytes = chosen.iter().map(|input| input.bytes).sum();
    Ok(Kept { files: chosen.len(), bytes, reached, of })
}

/// Has the engine say what each input reaches, by libFuzzer's own way to merge corpora.
fn measure(target: &Target, all: &[(u64, PathBuf)]) -> Result<Vec<Input>, Error> {
    let control = target.found().with_extension("merge");
    let mut text = format!("{}\n0\n", all.len());
    all.iter().for_each(|(_, path)| text.push_str(&format!("{}\n", path.display())));
    fs::write(&control, text).map_err(Error::file("write", &control))?;
    let mut command = engine(target);
    command.env(
        "BOLERO_LIBFUZZER_ARGS",
        format!("-merge_inner=1 -verbosity=0 -merge_control_file={}", control.display()),
    );
    process::read(&mut command)?;
    let report = fs::read_to_string(&control).map_err(Error::file("read", &control))?;
    fs::remove_file(&control).map_err(Error::file("remove", &control))?;
    Ok(inputs(&report, all))
}

/// From the lines `FT number feature feature …`.
fn inputs(report: &str, all: &[(u64, PathBuf)]) -> Vec<Input> {
    let mut inputs = Vec::new();
    for line in report.lines().filter_map(|line| line.strip_prefix("FT ")) {
        let mut numbers = line.split(' ').filter_map(|word| word.parse::<u64>().ok());
        let place = numbers.next().and_then(|number| all.get(number as usize));
        if let Some((bytes, path)) = place {
            let features = numbers.collect();
            inputs.push(Input { path: path.clone(), bytes: *bytes, features });
        }
    }
    inputs
}

/// Takes what adds most again and again, the smaller of two, until nothing adds or fits.
fn choose(mut inputs: Vec<Input>) -> Vec<Input> {
    let (mut chosen, mut bytes) = (Vec::<Input>::new(), 0);
    while chosen.len() < MAX_FILES {
        inputs.retain(|input| bytes + input.bytes <= MAX_BYTES && !input.features.is_empty());
        let best = inputs
            .iter()
            .enumerate()
            .max_by(|(_, a), (_, b)| (a.features.len(), b.bytes).cmp(&(b.features.len(), a.bytes)));
        let Some((place, _)) = best else { break };
        let best = inputs.swap_remove(place);
        for input in &mut inputs {
            input.features.retain(|feature| !best.features.contains(feature));
        }
        bytes += best.bytes;
        chosen.push(best);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(path: &str, bytes: u64, features: &[u64]) -> Input {
        Input { path: path.into(), bytes, features: features.iter().copied().collect() }
    }

    fn chosen(inputs: Vec<Input>) -> Vec<String> {
        choose(inputs).iter().map(|input| input.path.display().to_string()).collect()
    }

    #[test]
    fn what_adds_nothing_is_not_kept() {
        let all = vec![input("a", 1, &[1]), input("b", 9, &[1, 2, 3]), input("c", 2, &[4])];
        assert_eq!(chosen(all), ["b", "c"]);
        assert_eq!(chosen(vec![input("big", 9, &[1]), input("small", 1, &[1])]), ["small"]);
    }

    #[test]
    fn a_corpus_keeps_its_size() {
        let many = (0..100).map(|n| input(&n.to_string(), 1, &[n])).collect();
        assert_eq!(chosen(many).len(), MAX_FILES);
        let large = vec![input("a", MAX_BYTES, &[1, 2]), input("b", 1, &[3])];
        assert_eq!(chosen(large), ["a"]);
        assert_eq!(chosen(vec![input("c", MAX_BYTES + 1, &[1])]), Vec::<String>::new());
    }

    #[test]
    fn the_engines_report_is_read() {
        let all = [(3, "a".into()), (5, "b".into())];
        let got = inputs("STARTED 1 5\nFT 1 7 8\nCOV 1\nFT 9 1\n", &all);
        assert_eq!(got.len(), 1);
        assert_eq!((got[0].bytes, got[0].features.len()), (5, 2));
    }
}
