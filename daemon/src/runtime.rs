//! The runtime directory of an instance: its lock, its control socket, its hosts file.
//!
//! The lock is an open file description that the keeper shares with `serve` and `inside`: as long as one of them lives, nobody
//! else touches the directory; when the last has ended, whatever is left in it is stale, and the next `join` removes it.

use std::{
    fmt::Write as _,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write as _},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::{
            fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use clusternet::{node::output::Neighbour, sys::fd::FileId, words::id::Name};
use nix::fcntl::{Flock, FlockArg};

/// What the files in the directory are called.
pub(crate) const LOCK: &str = "lock";
pub(crate) const CONTROL: &str = "control";
pub(crate) const HOSTS: &str = "hosts";
pub(crate) const SSH: &str = "ssh";
pub(crate) const PVM: &str = "pvm";

/// The runtime directory while this process may use it.
#[derive(Debug)]
pub(crate) struct Runtime {
    path: PathBuf,
    lock: Flock<File>,
}

impl Runtime {
    /// Makes the directory, takes its lock and removes what a dead instance left in it.
    ///
    /// # Errors
    /// Another process has the lock: the instance is running. The directory, or the one above it, is not one's own.
    pub(crate) fn make(path: &Path, instance: &Name) -> anyhow::Result<Self> {
        // Whoever removes a directory holds its lock, so a lock that is still at its path after it was taken is the one.
        for _ in 0..100 {
            let lock = match take_lock(path, instance) {
                Ok(lock) => lock,
                Err(error) if is_not_found(&error) => continue,
                Err(error) => return Err(error),
            };
            let ours = FileId::of(lock.as_fd()).ok();
            if ours.is_some() && ours == FileId::of_path(&path.join(LOCK)).ok() {
                let runtime = Self { path: path.to_owned(), lock };
                runtime.clean()?;
                return Ok(runtime);
            }
        }
        bail!("the runtime directory {} is being removed again and again", path.display())
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The lock, for a child.
    pub(crate) fn lock(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    /// Binds the control socket, 0600. However long the directory's name is: the kernel sees a short one.
    pub(crate) fn bind_control(&self) -> anyhow::Result<UnixListener> {
        own_directory(&self.path)?;
        let path = self.path.join(CONTROL);
        let _ = fs::remove_file(&path);
        let directory = File::open(&self.path)
            .with_context(|| format!("open the runtime directory {}", self.path.display()))?;
        let short = format!("/proc/self/fd/{}/{CONTROL}", directory.as_raw_fd());
        let listener = UnixListener::bind(&short)
            .with_context(|| format!("bind the control socket {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
            .with_context(|| format!("make the control socket {} private", path.display()))?;
        Ok(listener)
    }

    /// Takes the lock again after the directory has been removed from under us.
    pub(crate) fn lock_again(&mut self, instance: &Name) -> anyhow::Result<()> {
        if FileId::of(self.lock.as_fd()).ok() != FileId::of_path(&self.path.join(LOCK)).ok() {
            self.lock = take_lock(&self.path, instance)?;
        }
        Ok(())
    }

    fn clean(&self) -> anyhow::Result<()> {
        let list = || format!("list the runtime directory {}", self.path.display());
        for entry in fs::read_dir(&self.path).with_context(list)? {
            let entry = entry.with_context(list)?;
            if entry.file_name() == LOCK {
                continue;
            }
            let path = entry.path();
            let removed = match entry.file_type() {
                Ok(kind) if kind.is_dir() => fs::remove_dir_all(&path),
                Ok(_) | Err(_) => fs::remove_file(&path),
            };
            removed.with_context(|| format!("remove the stale {}", path.display()))?;
        }
        Ok(())
    }
}

/// Removes the runtime directory, and the one above it when it is empty. For whoever holds the lock.
pub(crate) fn remove(path: &Path) {
    let _ = fs::remove_dir_all(path);
    if let Some(parent) = path.parent() {
        let _ = fs::remove_dir(parent);
    }
}

/// As [`remove`], for one of several that share the lock: not if another has removed the directory before, and somebody has
/// made a new one since, with a lock of its own.
pub(crate) fn remove_if_ours(path: &Path, lock: impl AsFd) {
    let ours = FileId::of(lock).ok();
    if ours.is_some() && ours == FileId::of_path(&path.join(LOCK)).ok() {
        remove(path);
    }
}

/// Makes a directory 0700, or checks that the one that is there is ours and nobody else's.
fn own_directory(path: &Path) -> anyhow::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => {
            return Err(error).with_context(|| format!("make the directory {}", path.display()));
        }
    }
    let about = fs::symlink_metadata(path)
        .with_context(|| format!("look at the directory {}", path.display()))?;
    let own = nix::unistd::geteuid().as_raw();
    ensure!(
        about.is_dir() && about.uid() == own,
        "{} is not a directory of user {own}: it cannot hold the control socket",
        path.display()
    );
    if about.mode() & 0o077 != 0 {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))
            .with_context(|| format!("make {} private", path.display()))?;
    }
    Ok(())
}

fn take_lock(directory: &Path, instance: &Name) -> anyhow::Result<Flock<File>> {
    own_directory(directory.parent().context("the runtime directory has no parent")?)?;
    own_directory(directory)?;
    let path = directory.join(LOCK);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            let _ = lock.set_len(0);
            let _ = writeln!(lock, "{}", std::process::id());
            Ok(lock)
        }
        Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
            let mut holder = String::new();
            let _ = file.read_to_string(&mut holder);
            bail!(
                "instance {instance} is running already (process {}); `clusternet leave {instance}` ends it, \
                 `--name` starts another one beside it",
                holder.trim()
            )
        }
        Err((_, error)) => Err(error).with_context(|| format!("lock {}", path.display())),
    }
}

fn is_not_found(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// The text of `/etc/hosts` inside: this machine and the nodes, nothing of the host's.
pub(crate) fn hosts_text(network: &Name, nodes: &[Neighbour]) -> String {
    let mut text = String::from(
        "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\nff02::1 ip6-allnodes\nff02::2 ip6-allrouters\n",
    );
    // The node itself first: PVM takes the first answer for its own name.
    let (own, others): (Vec<_>, Vec<_>) = nodes.iter().partition(|node| node.is_self);
    for node in own.into_iter().chain(others) {
        let name = &node.name;
        // Writing into a string cannot fail.
        let _ = writeln!(text, "{} {name} {name}.{network}", node.ipv4);
        let _ = writeln!(text, "{} {name} {name}.{network}", node.ipv6);
    }
    text
}

/// Writes the hosts file in place, by one write: a mount of it shows the inode, and whoever reads meanwhile sees old or new.
/// Where the new text is shorter, empty lines pad it.
///
/// # Errors
/// The system's.
pub(crate) fn write_hosts(path: &Path, text: &str) -> anyhow::Result<()> {
    let write = || -> io::Result<()> {
        let file =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o644).open(path)?;
        let old = usize::try_from(file.metadata()?.len()).unwrap_or(0);
        let mut bytes = text.as_bytes().to_vec();
        bytes.resize(bytes.len().max(old), b'\n');
        file.write_all_at(&bytes, 0)
    };
    write().with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn node(text: &str, n: u8, is_self: bool) -> Neighbour {
        Neighbour {
            name: name(text),
            ipv4: [10, 99, 0, n].into(),
            ipv6: [0xfd00, 0, 0, 0, 0, 0, 0, u16::from(n)].into(),
            host: None,
            owner: None,
            is_self,
        }
    }

    #[test]
    fn the_node_itself_comes_first_and_nothing_of_the_host() {
        let text = hosts_text(&name("lab"), &[node("a", 2, false), node("b", 3, true)]);
        let lines: Vec<&str> = text.lines().skip(4).collect();
        assert_eq!(
            lines,
            ["10.99.0.3 b b.lab", "fd00::3 b b.lab", "10.99.0.2 a a.lab", "fd00::2 a a.lab"]
        );
    }

    #[test]
    fn the_hosts_file_keeps_its_inode_and_never_shrinks() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hosts");
        write_hosts(&path, "10.99.0.1 a\n10.99.0.2 b\n").unwrap();
        let inode = fs::metadata(&path).unwrap().ino();
        write_hosts(&path, "10.99.0.1 a\n").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.len(), 24);
        assert_eq!(text.trim_end(), "10.99.0.1 a");
    }

    #[test]
    fn a_second_keeper_is_told_who_runs_and_a_later_one_finds_it_clean() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("clusternet/lab");
        let first = Runtime::make(&path, &name("lab")).unwrap();
        let told = Runtime::make(&path, &name("lab")).unwrap_err().to_string();
        let own = std::process::id();
        assert!(told.contains(&format!("is running already (process {own})")), "{told}");
        fs::write(path.join("hosts"), "stale").unwrap();
        fs::create_dir(path.join("pvm")).unwrap();
        drop(first);
        let second = Runtime::make(&path, &name("lab")).unwrap();
        assert_eq!(fs::read_dir(&path).unwrap().count(), 1, "the lock alone");
        remove(&path);
        drop(second);
        assert!(!directory.path().join("clusternet").exists());
    }

    #[test]
    fn a_lock_that_was_removed_is_not_held_twice() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("clusternet/lab");
        let mut first = Runtime::make(&path, &name("lab")).unwrap();
        fs::remove_dir_all(&path).unwrap();
        first.lock_again(&name("lab")).unwrap();
        assert!(Runtime::make(&path, &name("lab")).is_err());
    }

    #[test]
    fn the_control_socket_is_private_however_long_its_path() {
        let directory = tempfile::tempdir().unwrap();
        let long = directory.path().join("x".repeat(120));
        let runtime = Runtime::make(&long.join("lab"), &name("lab")).unwrap();
        let _listener = runtime.bind_control().unwrap();
        let mode = |path: PathBuf| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!(mode(long.join("lab/control")), 0o600);
        assert_eq!(mode(long.join("lab")), 0o700);
    }
}
