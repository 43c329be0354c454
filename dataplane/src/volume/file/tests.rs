//! File volumes on what this machine has: the temporary folder's file system with direct I/O, ramfs
//! (which refuses O_DIRECT), a full tmpfs, a loop device. Needs root for the mounts.

use super::*;
use crate::volume::conformance;
use outboard_dma::{FreeList, Region};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// A folder of this test alone, removed with everything in it.
struct Folder {
    path: PathBuf,
    mounted: bool,
}

impl Folder {
    fn new() -> Folder {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("outboard-file-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Folder { path, mounted: false }
    }

    /// A fresh memory file system of `kind`.
    fn mount(kind: &str, options: &str) -> Folder {
        let mut folder = Folder::new();
        run(Command::new("mount").args(["-t", kind, "-o", options, kind]).arg(&folder.path));
        folder.mounted = true;
        folder
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.mounted {
            let _ = Command::new("umount").arg("--lazy").arg(&self.path).status();
        }
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn sparse(path: &Path, bytes: u64) {
    std::fs::File::create(path).unwrap().set_len(bytes).unwrap();
}

fn memory() -> FreeList {
    Region::new(512).unwrap().carve(512).unwrap()
}

/// Runs one I/O on an idle volume.
fn end(file: &mut File, op: Op, offset_bytes: u64, segments: &[Segment]) -> Status {
    let tag = Tag { owner: 0, slot: 0 };
    end_io(file, &Io { tag, op, offset_bytes, range_bytes: 0, segments })
}

/// Runs one operation on a range without data.
fn end_range(file: &mut File, op: Op, offset_bytes: u64, range_bytes: u64) -> Status {
    let tag = Tag { owner: 0, slot: 0 };
    end_io(file, &Io { tag, op, offset_bytes, range_bytes, segments: &[] })
}

fn end_io(file: &mut File, io: &Io) -> Status {
    file.submit(0, io).unwrap();
    let mut done = Dones::new();
    for _ in 0..100_000 {
        file.reap(0, &mut done);
        if let Some(done) = done.pop() {
            return done.status;
        }
        std::thread::sleep(std::time::Duration::from_micros(50));
    }
    panic!("the I/O never ended");
}

fn conform(folder: &Folder, direct: bool) {
    let mut number = 0;
    let mut counters: Vec<Arc<FileCounters>> = Vec::new();
    conformance::suite(DEPTH as u32, conformance::ALL_OPS, |geometry| {
        number += 1;
        let path = folder.file(&number.to_string());
        let Geometry { block_bytes, read_only, .. } = geometry;
        let file = File::open(&path, block_bytes, read_only, Some(geometry.bytes())).unwrap();
        assert_eq!((file.geometry(), file.direct()), (geometry, direct));
        counters.push(file.counters().clone());
        file
    });
    assert!(counters.iter().all(|counters| counters.errors().all(|(_, count)| count == 0)));
    let bounced: u64 = counters.iter().map(|counters| counters.bounced.get()).sum();
    assert_eq!(bounced > 0, direct, "only direct I/O bounces: {bounced}");
}

#[test]
fn direct_conforms() {
    conform(&Folder::new(), true);
}

#[test]
fn buffered_conforms_where_direct_is_refused() {
    conform(&Folder::mount("ramfs", "mode=700"), false);
}

#[test]
fn content_outlives_the_volume_and_half_made_files_are_not_left() {
    let folder = Folder::new();
    let path = folder.file("disk");
    let mut free = memory();
    let mut frame = free.take().unwrap();
    let segment = [Segment::of_frame(&mut frame, 0, 4096)];
    let mut file = File::open(&path, 4096, false, Some(1 << 20)).unwrap();
    assert!(segment[0].copy_from(0, &[8; 4096]));
    assert_eq!(end(&mut file, Op::Write, 4096, &segment), Status::Ok);
    assert_eq!(end(&mut file, Op::Flush, 0, &[]), Status::Ok);
    drop(file);
    // It exists now: its own size counts.
    let mut file = File::open(&path, 4096, true, Some(2 << 20)).unwrap();
    assert_eq!(file.geometry(), Geometry { block_bytes: 4096, blocks: 256, read_only: true });
    assert!(segment[0].copy_from(0, &[0; 4096]));
    assert_eq!(end(&mut file, Op::Read, 4096, &segment), Status::Ok);
    assert_eq!(frame.bytes(), &[8; 4096]);
    assert_eq!(std::fs::read_dir(&folder.path).unwrap().count(), 1);
    free.give(frame);
}

#[test]
fn one_writer_or_many_readers() {
    let folder = Folder::new();
    let path = folder.file("disk");
    let writer = File::open(&path, 512, false, Some(1 << 20)).unwrap();
    for read_only in [false, true] {
        let error = File::open(&path, 512, read_only, None).unwrap_err();
        let own = format!("its lock is held by process {}", std::process::id());
        assert!(error.to_string().contains(&own), "{error}");
        assert!(matches!(error, FileError::InUse { .. }));
        assert!(error.to_string().contains("is in use by another volume"));
    }
    drop(writer);
    let readers = [(); 2].map(|()| File::open(&path, 512, true, None).unwrap());
    assert!(matches!(File::open(&path, 512, false, None), Err(FileError::InUse { .. })));
    drop(readers);
    File::open(&path, 512, false, None).unwrap();
}

#[test]
fn what_cannot_be_opened_is_named_with_the_remedy() {
    let folder = Folder::new();
    let message = |path: &Path, block_bytes, create| {
        File::open(path, block_bytes, false, create).unwrap_err().to_string()
    };
    let missing = folder.file("none");
    assert!(message(&missing, 512, None).contains("no such file; set `create`"));
    assert!(message(&missing, 512, Some(1000)).contains("not a multiple"));
    assert!(message(&missing, 512, Some(0)).contains("not a multiple"));
    assert!(message(&missing, 4096, Some(1 << 62)).contains("free space, or lower"));
    assert_eq!(std::fs::read_dir(&folder.path).unwrap().count(), 0, "a part was left");
    assert!(message(&folder.path, 512, None).contains("neither a regular file nor"));
    assert!(message(Path::new("/dev/null"), 512, None).contains("neither a regular file nor"));
    for bytes in [0, 511, 513] {
        let path = folder.file(&format!("of-{bytes}"));
        sparse(&path, bytes);
        assert!(message(&path, 512, None).contains(&format!("has {bytes} bytes")));
    }
    let nowhere = folder.file("no/such/folder");
    assert!(message(&nowhere, 512, Some(4096)).contains("No such file or directory"));
}

#[test]
fn a_file_cut_behind_our_back_reads_as_zeros() {
    let folder = Folder::new();
    let path = folder.file("disk");
    let mut file = File::open(&path, 512, false, Some(64 << 10)).unwrap();
    let mut free = memory();
    let mut frames: Vec<_> = (0..4).map(|_| free.take().unwrap()).collect();
    let aligned: Segments =
        frames.iter_mut().map(|frame| Segment::of_frame(frame, 0, 4096)).collect();
    let odd: Segments = aligned.iter().map(|segment| segment.part(1, 3584).unwrap()).collect();
    for segment in &aligned {
        segment.copy_from(0, &[6; 4096]);
    }
    for at in [0, 16 << 10, 32 << 10, 48 << 10] {
        assert_eq!(end(&mut file, Op::Write, at, &aligned), Status::Ok);
    }
    for kept in [16_384 + 4096, 20_000, 16_384, 100] {
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(kept).unwrap();
        for segments in [&aligned, &odd] {
            segments.iter().for_each(|segment| {
                segment.copy_from(0, &vec![9; segment.len()]);
            });
            assert_eq!(end(&mut file, Op::Read, 16 << 10, segments), Status::Ok);
            let mut content = Vec::new();
            for segment in segments {
                let mut bytes = vec![0; segment.len()];
                assert!(segment.copy_to(0, &mut bytes));
                content.extend(bytes);
            }
            let valid = (kept as usize).saturating_sub(16 << 10);
            assert!(content[..valid].iter().all(|byte| *byte == 6), "{kept}");
            assert!(content[valid..].iter().all(|byte| *byte == 0), "{kept}");
        }
    }
    assert_eq!(file.counters().beyond_end.get(), 8);
    frames.into_iter().for_each(|frame| free.give(frame));
}

#[test]
fn a_full_medium_is_no_space_and_counted_by_name() {
    let folder = Folder::mount("tmpfs", "size=64k");
    let path = folder.file("disk");
    sparse(&path, 1 << 20);
    let mut file = File::open(&path, 4096, false, None).unwrap();
    let mut free = memory();
    let mut frame = free.take().unwrap();
    let segment = [Segment::of_frame(&mut frame, 0, 4096)];
    let outcomes: Vec<_> =
        (0..256).map(|block| end(&mut file, Op::Write, block * 4096, &segment)).collect();
    assert_eq!(outcomes[0], Status::Ok);
    assert_eq!(outcomes[255], Status::NoSpace);
    let refused = outcomes.iter().filter(|status| **status == Status::NoSpace).count() as u64;
    let errors: Vec<_> = file.counters().errors().filter(|(_, count)| *count > 0).collect();
    assert_eq!(errors, [("ENOSPC", refused)]);
    free.give(frame);
}

/// Bytes of space that a file takes.
fn space(path: &Path) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(path).unwrap()) * 512
}

#[test]
fn a_discard_gives_space_back_and_write_zeroes_keeps_it() {
    let folder = Folder::new();
    let path = folder.file("disk");
    let mut file = File::open(&path, 4096, false, Some(4 << 20)).unwrap();
    let segment = [Segment::of_static(vec![6; 1 << 20].leak())];
    for at in 0..4 {
        assert_eq!(end(&mut file, Op::Write, at << 20, &segment), Status::Ok);
    }
    let full = space(&path);
    assert!(full >= 4 << 20);
    assert_eq!(end_range(&mut file, Op::WriteZeroes, 0, 1 << 20), Status::Ok);
    assert_eq!(end(&mut file, Op::Flush, 0, &[]), Status::Ok);
    assert!(space(&path) >= 4 << 20);
    assert_eq!(end_range(&mut file, Op::Discard, 1 << 20, 2 << 20), Status::Ok);
    assert_eq!(end(&mut file, Op::Flush, 0, &[]), Status::Ok);
    assert!(space(&path) <= full - (2 << 20), "{} of {full}", space(&path));
    assert_eq!(path.metadata().unwrap().len(), 4 << 20);
    for (at, byte) in [(0, 0), (1, 0), (2, 0), (3, 6)] {
        assert_eq!(end(&mut file, Op::Read, at << 20, &segment), Status::Ok);
        let mut content = vec![9; 1 << 20];
        assert!(segment[0].copy_to(0, &mut content));
        assert!(content.iter().all(|found| *found == byte), "MiB {at}");
    }
    assert_eq!((file.counters().kept.get(), file.counters().zeros_written.get()), (0, 0));
}

#[test]
fn where_the_file_system_knows_neither_discards_are_kept_and_zeros_written() {
    let folder = Folder::mount("ramfs", "mode=700");
    let mut file = File::open(&folder.file("disk"), 512, false, Some(1 << 20)).unwrap();
    let segment = [Segment::of_static(vec![6; 1 << 20].leak())];
    assert_eq!(end(&mut file, Op::Write, 0, &segment), Status::Ok);
    for kept in [1, 2] {
        assert_eq!(end_range(&mut file, Op::Discard, 0, 1 << 20), Status::Ok);
        assert_eq!(file.counters().kept.get(), kept);
    }
    for (round, at) in [(1, 512), (2, 1024)] {
        let bytes = 3 * BOUNCE_BYTES as u64 + 512;
        assert_eq!(end_range(&mut file, Op::WriteZeroes, at, bytes), Status::Ok);
        assert_eq!(file.counters().zeros_written.get(), round);
    }
    assert_eq!(end(&mut file, Op::Read, 0, &segment), Status::Ok);
    let mut content = vec![9; 1 << 20];
    assert!(segment[0].copy_to(0, &mut content));
    let zeros = 512..1536 + 3 * BOUNCE_BYTES;
    let wrong = content
        .iter()
        .enumerate()
        .find(|(at, byte)| **byte != if zeros.contains(at) { 0 } else { 6 });
    assert_eq!(wrong, None);
    assert!(file.counters().errors().all(|(_, count)| count == 0));
}

#[test]
fn a_compare_finds_zeros_behind_the_end_of_a_cut_file() {
    let folder = Folder::new();
    let path = folder.file("disk");
    let mut file = File::open(&path, 512, false, Some(64 << 10)).unwrap();
    let segment = [Segment::of_static(vec![6; 8192].leak())];
    assert_eq!(end(&mut file, Op::Write, 0, &segment), Status::Ok);
    assert_eq!(end(&mut file, Op::Compare, 0, &segment), Status::Ok);
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(4096).unwrap();
    assert_eq!(end(&mut file, Op::Compare, 0, &segment), Status::Miscompare);
    assert!(segment[0].copy_from(4096, &[0; 4096]));
    assert_eq!(end(&mut file, Op::Compare, 0, &segment), Status::Ok);
    assert_eq!(file.counters().beyond_end.get(), 2);
}

#[test]
fn an_io_larger_than_the_bounce_buffer_goes_in_pieces() {
    let folder = Folder::new();
    let mut file = File::open(&folder.file("disk"), 512, false, Some(4 << 20)).unwrap();
    let bytes = 3 * BOUNCE_BYTES + 512;
    let segment = [Segment::of_static(&mut vec![0; bytes + 1].leak()[1..])];
    let data: Vec<u8> = (0..bytes).map(|index| (index / 7 % 251) as u8).collect();
    assert!(segment[0].copy_from(0, &data));
    assert_eq!(end(&mut file, Op::Write, 512, &segment), Status::Ok);
    assert!(segment[0].copy_from(0, &vec![0; bytes]));
    assert_eq!(end(&mut file, Op::Read, 512, &segment), Status::Ok);
    let mut read = vec![0; bytes];
    assert!(segment[0].copy_to(0, &mut read));
    assert!(read == data);
    assert_eq!(file.counters().bounced.get(), 2);
}

#[test]
fn dropping_with_io_in_flight_waits_for_it_also_on_another_thread() {
    let folder = Folder::new();
    let path = folder.file("disk");
    let mut free = memory();
    let mut frames: Vec<_> = (0..DEPTH).map(|_| free.take().unwrap()).collect();
    for round in 1..20u8 {
        frames.iter_mut().for_each(|frame| frame.bytes_mut().fill(round));
        let segments: Vec<_> =
            frames.iter_mut().map(|frame| [Segment::of_frame(frame, 0, 4096)]).collect();
        let mut file = File::open(&path, 4096, false, Some(8 << 20)).unwrap();
        let user = move || {
            for (slot, segments) in segments.iter().enumerate() {
                let op = if slot % 2 == 0 { Op::Read } else { Op::Write };
                let tag = Tag { owner: 0, slot: slot as u16 };
                let offset_bytes = slot as u64 * 4096;
                file.submit(0, &Io { tag, op, offset_bytes, range_bytes: 0, segments }).unwrap();
                if slot == 100 {
                    file.tell_kernel();
                }
            }
            file
        };
        // The thread that submits owns the ring; here it also ends before the volume does.
        let file = std::thread::spawn(user).join().unwrap();
        drop(file);
        // What was only queued never happened; of the rest all has happened.
        for (slot, frame) in frames.iter().enumerate() {
            let expected = if slot % 2 == 0 && slot <= 100 { 0 } else { round };
            assert_eq!(frame.bytes(), &[expected; 4096], "slot {slot}");
        }
        let content = std::fs::read(&path).unwrap();
        for (slot, block) in content.chunks(4096).take(DEPTH).enumerate() {
            let expected = if slot % 2 == 1 && slot <= 100 { round } else { 0 };
            assert_eq!(block, [expected; 4096], "block {slot}");
        }
    }
    frames.into_iter().for_each(|frame| free.give(frame));
}

#[test]
fn errnos_map_to_statuses() {
    let folder = Folder::new();
    let mut file = File::open(&folder.file("disk"), 512, false, Some(4096)).unwrap();
    for (errno, status, name) in [
        (libc::ENOSPC, Status::NoSpace, "ENOSPC"),
        (libc::EDQUOT, Status::NoSpace, "EDQUOT"),
        (libc::EIO, Status::Media, "EIO"),
        (libc::EROFS, Status::Media, "EROFS"),
        (libc::EXDEV, Status::Media, "other"),
        (libc::EFAULT, Status::Aborted, "EFAULT"),
    ] {
        assert_eq!(file.failed(0, errno), Some(status));
        assert!(file.counters().errors().any(|counted| counted == (name, 1)));
    }
}

/// A loop device over a file, detached at the end.
struct Loop(PathBuf);

impl Loop {
    fn over(path: &Path) -> Loop {
        let device = run(Command::new("losetup").args(["--find", "--show"]).arg(path));
        Loop(device.into())
    }

    /// Flushes the device has ended: field 16 of its `stat`.
    fn flushes(&self) -> u64 {
        let name = self.0.file_name().unwrap().to_str().unwrap();
        let stat = std::fs::read_to_string(format!("/sys/block/{name}/stat")).unwrap();
        stat.split_whitespace().nth(15).unwrap().parse().unwrap()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

#[test]
fn a_block_device_is_a_volume_and_a_flush_reaches_it() {
    let folder = Folder::new();
    let backing = folder.file("backing");
    sparse(&backing, 1 << 20);
    let device = Loop::over(&backing);
    let mut file = File::open(&device.0, 4096, false, None).unwrap();
    assert!(file.direct());
    assert_eq!(file.geometry(), Geometry { block_bytes: 4096, blocks: 256, read_only: false });
    assert!(matches!(File::open(&device.0, 4096, false, None), Err(FileError::InUse { .. })));
    let mut free = memory();
    let mut frame = free.take().unwrap();
    frame.bytes_mut().fill(5);
    let segment = [Segment::of_frame(&mut frame, 0, 4096)];
    assert_eq!(end(&mut file, Op::Write, (1 << 20) - 4096, &segment), Status::Ok);
    let before = device.flushes();
    assert_eq!(end(&mut file, Op::Flush, 0, &[]), Status::Ok);
    assert_eq!(device.flushes(), before + 1);
    assert_eq!(std::fs::read(&backing).unwrap()[(1 << 20) - 4096..], [5; 4096]);
    free.give(frame);
    drop(file);
}

#[test]
fn a_device_of_larger_blocks_names_the_block_size_it_needs() {
    let folder = Folder::new();
    let backing = folder.file("backing");
    sparse(&backing, 1 << 20);
    let device = Loop::over(&backing);
    run(Command::new("losetup").args(["--sector-size", "4096"]).arg(&device.0));
    let error = File::open(&device.0, 512, false, None).unwrap_err();
    assert!(error.to_string().contains("set block_bytes = 4096"), "{error}");
    File::open(&device.0, 4096, false, None).unwrap();
}
