//! What sftp does to files beyond what the standard library offers.

use std::{
    ffi::OsStr,
    fs::{self, File, Metadata},
    io,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
};

use nix::{
    fcntl::AT_FDCWD,
    sys::{
        stat::{UtimensatFlags, futimens, utimensat},
        time::TimeSpec,
    },
    unistd::{Gid, Group, Uid, User},
};

use super::wire::{Attributes, Failed};

fn time(seconds: u32) -> TimeSpec {
    TimeSpec::new(seconds.into(), 0)
}

/// Sets what is there to set; with `follow`, on what a symbolic link points to.
pub(super) fn set_attributes(
    path: &Path,
    attributes: &Attributes,
    follow: bool,
) -> Result<(), Failed> {
    if let Some(size) = attributes.size {
        if !follow {
            return Err(Failed::unsupported());
        }
        File::options().write(true).open(path)?.set_len(size)?;
    }
    if let Some(mode) = attributes.mode {
        // Links have no mode of their own.
        if follow || !fs::symlink_metadata(path)?.is_symlink() {
            fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o7777))?;
        }
    }
    if let Some((access, change)) = attributes.times {
        let flags =
            if follow { UtimensatFlags::FollowSymlink } else { UtimensatFlags::NoFollowSymlink };
        utimensat(AT_FDCWD, path, &time(access), &time(change), flags)?;
    }
    if let Some((user, group)) = attributes.owner {
        if follow {
            std::os::unix::fs::chown(path, Some(user), Some(group))?;
        } else {
            std::os::unix::fs::lchown(path, Some(user), Some(group))?;
        }
    }
    Ok(())
}

/// The same for an open file.
pub(super) fn set_file_attributes(file: &File, attributes: &Attributes) -> Result<(), Failed> {
    if let Some(size) = attributes.size {
        file.set_len(size)?;
    }
    if let Some(mode) = attributes.mode {
        file.set_permissions(fs::Permissions::from_mode(mode & 0o7777))?;
    }
    if let Some((access, change)) = attributes.times {
        futimens(file, &time(access), &time(change))?;
    }
    if let Some((user, group)) = attributes.owner {
        std::os::unix::fs::fchown(file, Some(user), Some(group))?;
    }
    Ok(())
}

/// The absolute path without links and dots; the last part need not be there yet.
pub(super) fn resolve(path: &Path) -> io::Result<PathBuf> {
    match fs::canonicalize(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            match (path.parent(), path.file_name()) {
                (Some(parent), Some(name)) => Ok(fs::canonicalize(parent)?.join(name)),
                _ => Err(error),
            }
        }
        result => result,
    }
}

/// A line as `ls -l --time-style=long-iso` writes it: clients show it as it is.
pub(super) fn long_name(name: &OsStr, metadata: &Metadata) -> Vec<u8> {
    let user = User::from_uid(Uid::from_raw(metadata.uid())).ok().flatten();
    let group = Group::from_gid(Gid::from_raw(metadata.gid())).ok().flatten();
    let mut line = format!(
        "{} {:>4} {:<8} {:<8} {:>8} {} ",
        mode_text(metadata),
        metadata.nlink(),
        user.map_or_else(|| metadata.uid().to_string(), |user| user.name),
        group.map_or_else(|| metadata.gid().to_string(), |group| group.name),
        metadata.size(),
        time_text(metadata.mtime()),
    )
    .into_bytes();
    line.extend_from_slice(name.as_bytes());
    line
}

fn time_text(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(
        |_| seconds.to_string(),
        |time| time.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M").to_string(),
    )
}

fn mode_text(metadata: &Metadata) -> String {
    let (kind, mode) = (metadata.file_type(), metadata.mode());
    let mut text = String::with_capacity(10);
    text.push(match () {
        () if kind.is_dir() => 'd',
        () if kind.is_symlink() => 'l',
        () if kind.is_block_device() => 'b',
        () if kind.is_char_device() => 'c',
        () if kind.is_fifo() => 'p',
        () if kind.is_socket() => 's',
        () => '-',
    });
    // Read, write, and execute, which shows the set-id or sticky bit too.
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        text.push(if mode >> shift & 4 != 0 { 'r' } else { '-' });
        text.push(if mode >> shift & 2 != 0 { 'w' } else { '-' });
        text.push(match (mode >> shift & 1 != 0, mode & special != 0) {
            (true, false) => 'x',
            (false, false) => '-',
            (true, true) => letter,
            (false, true) => letter.to_ascii_uppercase(),
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_name_reads_as_ls_writes_it() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("x");
        fs::write(&path, b"12345").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o4751)).unwrap();
        let line = long_name(OsStr::new("x"), &fs::metadata(&path).unwrap());
        let line = String::from_utf8(line).unwrap();
        assert!(line.starts_with("-rwsr-x--x "), "{line}");
        assert!(line.ends_with(" x") && line.contains(" 5 "), "{line}");
    }

    #[test]
    fn a_path_whose_last_part_is_missing_resolves() {
        let scratch = tempfile::tempdir().unwrap();
        let real = fs::canonicalize(scratch.path()).unwrap();
        assert_eq!(resolve(&scratch.path().join("./new")).unwrap(), real.join("new"));
        assert!(resolve(&scratch.path().join("a/b")).is_err());
    }
}
