//! Files that matter: read with a bound, secret ones only while private, replaced whole or not at all, locked.
//!
//! Theory of operation. [`replace`] writes a new file beside the old one, syncs it, renames it over the old one and syncs
//! the directory: whoever reads sees the old text or the new one, also after a crash. While it is being written the new
//! file is called `.clusternet-XXXX.tmp` and is locked by its writer, so that [`sweep`] can tell what a killed writer has
//! left behind. [`Lock`] is advisory (`flock`), ends with its process, and works on NFS since Linux 2.6.12.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    unistd::geteuid,
};
use zeroize::{Zeroize, Zeroizing};

use crate::words::key::random_u64;

/// What files are called while they are written.
const TEMPORARY: (&str, &str) = (".clusternet-", ".tmp");

/// Why a file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum FileAccessError {
    /// There is none.
    #[error("{}: there is no such file", .0.display())]
    Missing(PathBuf),
    /// The system refused.
    #[error("{what} {}: {error}", path.display())]
    System {
        /// What was tried: a verb.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        error: io::Error,
    },
    /// Longer than any such file is.
    #[error("{}: longer than the {} KiB that such a file may have", path.display(), limit / 1024)]
    TooLong {
        /// Which file.
        path: PathBuf,
        /// The most bytes it may have.
        limit: usize,
    },
    /// Not UTF-8.
    #[error("{}: not a text file", .0.display())]
    NotText(PathBuf),
    /// A secret must be a file of its own, not a pipe or a device.
    #[error("{}: not a regular file, as one with a secret must be", .0.display())]
    NotRegular(PathBuf),
    /// Others may read or write a secret.
    #[error(
        "{}: others than its owner can use this file (mode {mode:04o}), which holds a secret: chmod 600 {}", path.display(), path.display()
    )]
    NotPrivate {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A secret belongs to another user.
    #[error("{}: this file holds a secret and belongs to another user (uid {owner})", path.display())]
    OtherOwner {
        /// Which file.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
}

impl FileAccessError {
    /// Whether there is no such file.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Missing(_))
    }
}

fn system<'a>(
    what: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> FileAccessError + 'a {
    move |error| {
        let path = path.to_owned();
        if what == "read" && error.kind() == io::ErrorKind::NotFound {
            FileAccessError::Missing(path)
        } else {
            FileAccessError::System { what, path, error }
        }
    }
}

/// Reads a text file of at most `limit` bytes.
///
/// # Errors
/// [`FileAccessError`]: missing, refused, too long, not text.
pub fn read_text(path: &Path, limit: usize) -> Result<String, FileAccessError> {
    let file = File::open(path).map_err(system("read", path))?;
    let text = read_bounded(file, path, limit)?;
    Ok(text.as_str().to_owned())
}

/// Reads a text file of at most `limit` bytes that holds a secret. Nobody but its owner may have any access to it, and
/// its owner must be this user or root. The text is zeroized when dropped.
///
/// # Errors
/// [`FileAccessError`].
pub fn read_private(path: &Path, limit: usize) -> Result<Zeroizing<String>, FileAccessError> {
    // Without O_NONBLOCK a pipe would make us wait for its writer.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)
        .map_err(system("read", path))?;
    let about = file.metadata().map_err(system("read", path))?;
    if !about.is_file() {
        return Err(FileAccessError::NotRegular(path.to_owned()));
    }
    if about.uid() != 0 && about.uid() != geteuid().as_raw() {
        return Err(FileAccessError::OtherOwner { path: path.to_owned(), owner: about.uid() });
    }
    if about.mode() & 0o077 != 0 {
        let mode = about.mode() & 0o7777;
        return Err(FileAccessError::NotPrivate { path: path.to_owned(), mode });
    }
    read_bounded(file, path, limit)
}

/// Reads everything from something open that may not end: standard input, a pipe.
///
/// # Errors
/// [`FileAccessError`].
pub fn read_stream(from: impl Read, name: &str, limit: usize) -> Result<String, FileAccessError> {
    let text = read_bounded(from, Path::new(name), limit)?;
    Ok(text.as_str().to_owned())
}

fn read_bounded(
    from: impl Read,
    path: &Path,
    limit: usize,
) -> Result<Zeroizing<String>, FileAccessError> {
    // A buffer that grows leaves copies of a secret behind: key files fit into this one.
    let mut bytes = Zeroizing::new(Vec::with_capacity(16 * 1024));
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    from.take(most).read_to_end(&mut bytes).map_err(system("read", path))?;
    if bytes.len() > limit {
        return Err(FileAccessError::TooLong { path: path.to_owned(), limit });
    }
    match String::from_utf8(std::mem::take(&mut *bytes)) {
        Ok(text) => Ok(Zeroizing::new(text)),
        Err(error) => {
            error.into_bytes().zeroize();
            Err(FileAccessError::NotText(path.to_owned()))
        }
    }
}

/// Puts a file with this text and these permission bits in the place of what `path` names, whole or not at all.
///
/// # Errors
/// [`FileAccessError::System`]; then the old file is as it was.
pub fn replace(path: &Path, text: &[u8], mode: u32) -> Result<(), FileAccessError> {
    let directory = directory_of(path);
    let (mut file, temporary) = create_temporary(&directory)?;
    let written = write_and_sync(&mut file, text, mode, path)
        .and_then(|()| fs::rename(&temporary, path).map_err(system("write", path)))
        .and_then(|()| sync_directory(&directory));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// The directory that holds `path`; `.` where it is a bare name.
pub fn directory_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        Some(_) | None => PathBuf::from("."),
    }
}

fn create_temporary(directory: &Path) -> Result<(Flock<File>, PathBuf), FileAccessError> {
    let (front, back) = TEMPORARY;
    loop {
        let path = directory.join(format!("{front}{:016x}{back}", random_u64()));
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(system("write in", directory))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            // A sweeper may have come in between.
            Ok(file) if file.metadata().is_ok_and(|about| about.nlink() > 0) => {
                return Ok((file, path));
            }
            Ok(_) | Err((_, Errno::EWOULDBLOCK)) => {}
            Err((_, errno)) => {
                let _ = fs::remove_file(&path);
                return Err(system("lock", &path)(errno.into()));
            }
        }
    }
}

fn write_and_sync(
    file: &mut File,
    text: &[u8],
    mode: u32,
    path: &Path,
) -> Result<(), FileAccessError> {
    file.write_all(text).map_err(system("write", path))?;
    // Not by the mode of creation, from which the umask takes bits.
    file.set_permissions(fs::Permissions::from_mode(mode)).map_err(system("write", path))?;
    file.sync_all().map_err(system("write", path))
}

fn sync_directory(directory: &Path) -> Result<(), FileAccessError> {
    let opened = File::open(directory).map_err(system("sync", directory))?;
    match opened.sync_all() {
        // Some file systems cannot, and need not.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        done => done.map_err(system("sync", directory)),
    }
}

/// Removes what killed writers have left in a directory; files that are being written stay.
pub fn sweep(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !(name.starts_with(TEMPORARY.0) && name.ends_with(TEMPORARY.1)) {
            continue;
        }
        let Ok(file) = File::open(entry.path()) else { continue };
        if Flock::lock(file, FlockArg::LockExclusiveNonblock).is_ok() {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Makes a directory that only its owner can enter, unless there is one. Its parent must exist. Returns whether it was made.
///
/// # Errors
/// [`FileAccessError::System`].
pub fn make_private_directory(path: &Path) -> Result<bool, FileAccessError> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(false),
        Err(error) => Err(system("make directory", path)(error)),
    }
}

/// An exclusive lock that lasts as long as the value, or the process.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
}

impl Lock {
    /// Takes the lock on `path`, an empty file that is made where it is missing and never removed; calls `waiting` once if
    /// somebody else holds it, and waits.
    ///
    /// # Errors
    /// [`FileAccessError::System`].
    pub fn take(path: &Path, waiting: impl FnOnce()) -> Result<Self, FileAccessError> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(system("lock", path))?;
        let refused = |errno: Errno| system("lock", path)(errno.into());
        let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => return Ok(Self { _file: file }),
            Err((file, Errno::EWOULDBLOCK)) => file,
            Err((_, errno)) => return Err(refused(errno)),
        };
        waiting();
        let mut file = file;
        loop {
            match Flock::lock(file, FlockArg::LockExclusive) {
                Ok(file) => return Ok(Self { _file: file }),
                Err((again, Errno::EINTR)) => file = again,
                Err((_, errno)) => return Err(refused(errno)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn mode_of(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn a_replaced_file_has_the_new_text_and_mode_and_nothing_stays_behind() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        replace(&path, b"old", 0o644).unwrap();
        assert_eq!((fs::read(&path).unwrap().as_slice(), mode_of(&path)), (&b"old"[..], 0o644));
        replace(&path, b"new", 0o600).unwrap();
        assert_eq!((fs::read(&path).unwrap().as_slice(), mode_of(&path)), (&b"new"[..], 0o600));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_replacement_leaves_the_old_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("taken");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("x"), "kept").unwrap();
        assert!(replace(&path, b"new", 0o600).is_err());
        assert!(path.join("x").exists());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "no temporary file stays");
        assert!(replace(&directory.path().join("missing/file"), b"new", 0o600).is_err());
    }

    #[test]
    fn secrets_that_others_can_read_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.key");
        replace(&path, b"secret", 0o600).unwrap();
        assert_eq!(read_private(&path, 100).unwrap().as_str(), "secret");
        replace(&path, b"secret", 0o400).unwrap();
        assert!(read_private(&path, 100).is_ok());
        for mode in [0o604, 0o640, 0o602, 0o620, 0o644, 0o610] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let refused = read_private(&path, 100).unwrap_err();
            assert!(matches!(refused, FileAccessError::NotPrivate { mode: m, .. } if m == mode));
        }
        assert!(read_private(&directory.path().join("none"), 100).unwrap_err().is_missing());
        assert!(matches!(
            read_private(directory.path(), 100).unwrap_err(),
            FileAccessError::NotRegular(_)
        ));
    }

    #[test]
    fn a_secret_in_a_pipe_is_refused_without_waiting() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipe");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(matches!(read_private(&path, 100).unwrap_err(), FileAccessError::NotRegular(_)));
    }

    #[test]
    fn another_users_secret_is_refused() {
        if !geteuid().is_root() {
            eprintln!("skipped: only root can make another user's file");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.key");
        replace(&path, b"secret", 0o600).unwrap();
        std::os::unix::fs::chown(&path, Some(12_345), None).unwrap();
        let refused = read_private(&path, 100).unwrap_err();
        assert!(matches!(refused, FileAccessError::OtherOwner { owner: 12_345, .. }));
    }

    #[test]
    fn reading_is_bounded_and_takes_text_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, [b'x'; 101]).unwrap();
        assert!(matches!(read_text(&path, 100).unwrap_err(), FileAccessError::TooLong { .. }));
        assert_eq!(read_text(&path, 101).unwrap().len(), 101);
        let endless = read_text(Path::new("/dev/zero"), 100).unwrap_err();
        assert!(matches!(endless, FileAccessError::TooLong { .. }));
        fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(matches!(read_text(&path, 100).unwrap_err(), FileAccessError::NotText(_)));
    }

    #[test]
    fn sweeping_removes_what_killed_writers_left_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::write(path(".clusternet-00.tmp"), "left").unwrap();
        fs::write(path("kept"), "kept").unwrap();
        fs::write(path(".clusternet-01.tmp"), "being written").unwrap();
        let writer = File::open(path(".clusternet-01.tmp")).unwrap();
        let writer = Flock::lock(writer, FlockArg::LockExclusive).unwrap();
        sweep(directory.path());
        assert!(!path(".clusternet-00.tmp").exists());
        assert!(path("kept").exists() && path(".clusternet-01.tmp").exists());
        drop(writer);
    }

    #[test]
    fn a_lock_is_held_by_one_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let held = Lock::take(&path, || panic!("nobody holds it")).unwrap();
        let released = AtomicBool::new(false);
        let (told, waits) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let lock = Lock::take(&path, || told.send(()).unwrap()).unwrap();
                assert!(released.load(Ordering::SeqCst), "taken while it was held");
                drop(lock);
            });
            waits.recv().unwrap();
            released.store(true, Ordering::SeqCst);
            drop(held);
        });
    }

    #[test]
    fn private_directories_are_private() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lab");
        assert!(make_private_directory(&path).unwrap());
        assert_eq!(mode_of(&path), 0o700);
        assert!(!make_private_directory(&path).unwrap());
        fs::write(directory.path().join("file"), "").unwrap();
        assert!(make_private_directory(&directory.path().join("file")).is_err());
    }
}
