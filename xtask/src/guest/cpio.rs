//! Archives of the form that the kernel unpacks into its first file system: cpio "newc"
//! (Documentation/driver-api/early-userspace/buffer-format.rst of Linux).

use crate::error::Error;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The name that ends an archive.
const TRAILER: &[u8] = b"TRAILER!!!";
/// Headers and contents begin at multiples of this.
const ALIGN: usize = 4;

/// Writes all of `folder` as an archive; everything in it belongs to root.
pub fn write(folder: &Path, archive: &Path) -> Result<(), Error> {
    let file = File::create(archive).map_err(Error::file("create", archive))?;
    let mut out = BufWriter::new(file);
    let mut inode = 0;
    for path in walk(folder)? {
        let metadata = fs::symlink_metadata(&path).map_err(Error::file("look at", &path))?;
        let content = if metadata.is_symlink() {
            let target = fs::read_link(&path).map_err(Error::file("read", &path))?;
            target.as_os_str().as_bytes().to_vec()
        } else if metadata.is_file() {
            fs::read(&path).map_err(Error::file("read", &path))?
        } else {
            Vec::new()
        };
        inode += 1;
        let name = path.strip_prefix(folder).expect("it was found below").as_os_str().as_bytes();
        entry(&mut out, inode, metadata.mode(), name, &content)
            .map_err(Error::file("write", archive))?;
    }
    entry(&mut out, 0, 0, TRAILER, &[]).map_err(Error::file("write", archive))?;
    out.flush().map_err(Error::file("write", archive))
}

/// Everything below a folder, folders before what is in them.
fn walk(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    let mut left = vec![folder.to_path_buf()];
    while let Some(folder) = left.pop() {
        let mut paths = super::packages::entries(&folder)?;
        paths.sort();
        left.extend(paths.iter().filter(|path| path.is_dir() && !path.is_symlink()).cloned());
        found.extend(paths);
    }
    Ok(found)
}

/// A header of thirteen numbers, eight hexadecimal digits each, the name, the content.
fn entry(
    out: &mut impl Write,
    inode: u32,
    mode: u32,
    name: &[u8],
    content: &[u8],
) -> io::Result<()> {
    let too_large = |_| io::Error::other("a file of 4 GiB or more");
    let content_bytes = u32::try_from(content.len()).map_err(too_large)?;
    let name_bytes = u32::try_from(name.len() + 1).map_err(too_large)?;
    // ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
    let numbers = [inode, mode, 0, 0, 1, 0, content_bytes, 0, 0, 0, 0, name_bytes, 0];
    let mut header = b"070701".to_vec();
    for number in numbers {
        header.extend(format!("{number:08x}").bytes());
    }
    header.extend(name);
    header.push(0);
    for part in [&header[..], content] {
        out.write_all(part)?;
        let padding = part.len().next_multiple_of(ALIGN) - part.len();
        out.write_all(&[0; ALIGN][..padding])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns::Scratch;
    use std::os::unix::fs::symlink;

    #[test]
    fn entries_are_aligned_and_end_with_the_trailer() {
        let mut bytes = Vec::new();
        entry(&mut bytes, 7, 0o100644, b"etc/a", b"xyz").unwrap();
        let expected = "07070100000007000081a400000000000000000000000100000000\
                        0000000300000000000000000000000000000000000000060000\
                        0000etc/a\0xyz\0";
        assert_eq!(String::from_utf8_lossy(&bytes), expected);
        assert_eq!(bytes.len() % ALIGN, 0);
    }

    #[test]
    fn a_folder_becomes_its_files_links_and_folders() {
        let scratch = Scratch::new(&std::env::temp_dir(), "cpio").unwrap();
        let tree = scratch.path().join("tree");
        fs::create_dir_all(tree.join("usr/bin")).unwrap();
        fs::write(tree.join("usr/bin/a"), "program").unwrap();
        symlink("usr/bin", tree.join("bin")).unwrap();
        let archive = scratch.path().join("archive");
        write(&tree, &archive).unwrap();
        let text = String::from_utf8_lossy(&fs::read(&archive).unwrap()).into_owned();
        let names: Vec<&str> = text.split("070701").skip(1).map(|entry| &entry[104..]).collect();
        let begins = |name: &str| names.iter().position(|entry| entry.starts_with(name)).unwrap();
        assert!(begins("usr\0") < begins("usr/bin\0"));
        assert!(begins("usr/bin\0") < begins("usr/bin/a\0"));
        assert!(names[begins("usr/bin/a\0")].contains("program"));
        assert!(names[begins("bin\0")].contains("usr/bin"), "a link's content is its target");
        assert_eq!(begins("TRAILER!!!\0"), names.len() - 1);
    }
}
