//! `file`: io_uring on a local file or block device. A reference: it shares no hot code with
//! Outboard, and shows what the disk costs without anything between.

use super::block::{self, BlockArgs};
use super::{LoadArgs, publish};
use crate::error::Error;
use crate::reference::bare_file::BareFile;
use clap::Args;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Measure a local file or block device through io_uring.
///
/// The working set at the start of the file is filled first, so what it held is lost. The
/// generator polls the completion ring and never sleeps.
///
/// Examples:
///   outboard-bench file /tmp/disk.img --create-mib 64
///   outboard-bench file /tmp/disk.img --depth 32 --mix mixed --full-check
///   outboard-bench file /tmp/disk.img --rate 5000 --seconds 10 --json file.json
#[derive(Args, Clone, Debug)]
#[command(verbatim_doc_comment)]
pub struct FileArgs {
    /// The file or block device. Its content is overwritten.
    pub target: PathBuf,
    /// Make the file with this size when it is missing.
    #[arg(long, value_name = "MIB")]
    pub create_mib: Option<u64>,
    /// Go through the page cache instead of O_DIRECT.
    #[arg(long)]
    pub buffered: bool,
    #[command(flatten)]
    pub block: BlockArgs,
    #[command(flatten)]
    pub load: LoadArgs,
}

/// Runs the driver.
pub fn run(args: &FileArgs) -> Result<(), Error> {
    publish(measure(args)?, args.load.json.as_deref())
}

/// Measures without publishing.
pub fn measure(args: &FileArgs) -> Result<crate::schema::Measurement, Error> {
    let load = args.load.load(block::STUCK_AFTER_S)?;
    let (file, size_bytes) = open(args)?;
    let device = BareFile::new(file, size_bytes, load.depth, args.block.block)
        .map_err(Error::system("cannot set up io_uring (is it disabled by sysctl?)"))?;
    let cache = if args.buffered { "page cache" } else { "O_DIRECT" };
    let medium = format!("{}, {cache}", medium(&args.target));
    block::run(device, "file", medium, &args.load, &args.block)
}

fn open(args: &FileArgs) -> Result<(File, u64), Error> {
    let path = args.target.display();
    let flags = if args.buffered { 0 } else { libc::O_DIRECT };
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(flags);
    if let Some(mib) = args.create_mib.filter(|_| !args.target.exists()) {
        create(&args.target, mib << 20)
            .map_err(Error::system(format!("cannot create {path} with {mib} MiB")))?;
    }
    let file = options.open(&args.target).map_err(Error::system(format!(
        "cannot open {path} for O_DIRECT reading and writing (--create-mib makes it, --buffered \
         works where the file system has no O_DIRECT)"
    )))?;
    let size = std::io::Seek::seek(&mut &file, std::io::SeekFrom::End(0))
        .map_err(Error::system(format!("cannot tell the size of {path}")))?;
    Ok((file, size))
}

/// Written through, so that the file system has allocated every block.
fn create(path: &Path, bytes: u64) -> std::io::Result<()> {
    const CHUNK: u64 = 1 << 20;
    let file = OpenOptions::new().write(true).create_new(true).open(path)?;
    let zeros = vec![0; CHUNK as usize];
    for at in (0..bytes).step_by(CHUNK as usize) {
        file.write_all_at(&zeros[..CHUNK.min(bytes - at) as usize], at)?;
    }
    file.sync_all()
}

/// `file on ext4`, or `block device`.
pub fn medium(path: &Path) -> String {
    use std::os::unix::fs::FileTypeExt;
    if path.metadata().is_ok_and(|data| data.file_type().is_block_device()) {
        return "block device".into();
    }
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let full = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let kind = mounts
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ').skip(1);
            let (place, kind) = (words.next()?, words.next()?);
            full.starts_with(place).then_some((place.len(), kind))
        })
        .max_by_key(|(len, _)| *len);
    format!("file on {}", kind.map_or("unknown file system", |(_, kind)| kind))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drivers::block::{Mix, Order};

    /// A file that is removed whatever happens.
    pub struct Scratch(pub PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let name = format!("outboard-bench-{}-{name}", std::process::id());
            Scratch(std::env::temp_dir().join(name))
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    fn args(scratch: &Scratch, mix: Mix, depth: u16) -> FileArgs {
        FileArgs {
            target: scratch.0.clone(),
            create_mib: Some(2),
            buffered: false,
            block: BlockArgs { mix, full_check: true, working_set_mib: 2, ..BlockArgs::default() },
            load: LoadArgs { core: None, ..LoadArgs::closed(depth, 0.2, 0.0, 0) },
        }
    }

    #[test]
    fn reads_and_writes_verify_on_a_real_file() {
        let scratch = Scratch::new("verify");
        for (mix, depth) in [(Mix::Read, 1), (Mix::Mixed, 16)] {
            let measured = measure(&args(&scratch, mix, depth)).unwrap();
            assert!(measured.iops.unwrap() > 0.0 && measured.verified > 0);
            assert_eq!((measured.verify_failures, measured.errors), (0, 0));
            assert!(measured.medium.contains("O_DIRECT"), "{}", measured.medium);
        }
    }

    #[test]
    fn an_open_loop_on_a_real_file_asks_its_rate() {
        let scratch = Scratch::new("open");
        let mut plan = args(&scratch, Mix::Read, 1);
        plan.load.rate = Some(500.0);
        plan.load.window = 16;
        plan.block.order = Order::Sequential;
        let measured = measure(&plan).unwrap();
        let latency = measured.latency.unwrap();
        assert_eq!((latency.samples, measured.asked_rate_per_s), (100, Some(500.0)));
    }

    #[test]
    fn a_missing_file_is_named() {
        let mut plan = args(&Scratch::new("missing"), Mix::Read, 1);
        plan.create_mib = None;
        let error = measure(&plan).unwrap_err().to_string();
        assert!(error.contains("-missing") && error.contains("--create-mib"), "{error}");
    }

    #[test]
    fn media_are_named() {
        assert!(medium(Path::new("/proc/self/stat")).contains("proc"));
    }
}
