//! What a process inside sees of the file system: the caller's own mounts, and over them the few files that speak of the network.
//!
//! Nothing of the host is changed: all this is mounted in a mount namespace of its own, in which changes of the host still arrive
//! (`MS_SLAVE`) and from which none leave.

use std::{
    fs, io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{OFlag, open},
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::stat::Mode,
};
use serde::{Deserialize, Serialize};

use super::{OsError, enter::Failed};

/// Which files of ours are seen inside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// Seen as `/etc/hosts`. The inode is bound: later changes are seen only if written in place, never after a rename.
    pub hosts: PathBuf,
    /// Seen as `/etc/ssh/ssh_config` where there is one: so the system's `ssh` finds the network's nodes even when a login
    /// shell has reset PATH, and when it is called by its path. The host's own would not do: files it includes belong to a
    /// root that is nobody inside, and ssh refuses those.
    pub ssh_config: Option<PathBuf>,
}

/// The configuration that every `ssh` reads.
const SSH_CONFIG: &str = "/etc/ssh/ssh_config";

/// Larger files of `/etc` are cut: no name service configuration is.
const MAX_NSSWITCH: u64 = 64 * 1024;

/// Unknown names fail at once: with no server named the resolver asks this machine's own, whose port is closed inside.
const RESOLV_CONF: &str =
    "# Inside a clusternet network: names come from /etc/hosts.\noptions timeout:1 attempts:1\n";

/// Makes a mount namespace of this process's mounts and puts the view over them. The working directory stays. The user namespace
/// must be entered, and the network namespace too: a fresh sysfs shows the devices of the namespace it is mounted from.
///
/// Returns what could not be had and can be done without.
pub(super) fn put_on(view: &View) -> Result<Vec<String>, Failed> {
    let mut warnings = Vec::new();
    unshare(CloneFlags::CLONE_NEWNS).map_err(|e| Failed::new("make a mount namespace", e))?;
    let slave = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    mount_plain(None, "/", None, slave)
        .map_err(|e| Failed::new("part from the host's mounts", e))?;
    bind(&view.hosts, "/etc/hosts")
        .map_err(|e| Failed::new(format!("bind {} over /etc/hosts", view.hosts.display()), e))?;
    private_files().map_err(|e| Failed::new("bind a private /etc/nsswitch.conf", e))?;
    if let Some(config) = &view.ssh_config
        && Path::new(SSH_CONFIG).exists()
        && let Err(error) = bind(config, SSH_CONFIG)
    {
        let (config, error) = (config.display(), OsError::of(&error));
        warnings.push(format!("bind {config} over {SSH_CONFIG}: {error}; ssh works by PATH only"));
    }
    if let Err(error) = fresh_sysfs() {
        warnings.push(format!(
            "mount a fresh /sys: {}; UCX (MPICH) may not find the overlay device",
            OsError::of(&error)
        ));
    }
    for nscd in ["/run/nscd", "/var/run/nscd"] {
        // The host's name cache would answer with the host's view.
        if Path::new(nscd).is_dir() {
            tmpfs(nscd).map_err(|e| Failed::new(format!("cover {nscd}"), e))?;
        }
    }
    Ok(warnings)
}

/// Binds generated name service files. They live on a tmpfs that is mounted on `/sys` (a directory that surely exists, and is
/// covered next anyway), bound from there, and then taken off the tree: the bound files keep it.
fn private_files() -> io::Result<()> {
    let host = "/etc/nsswitch.conf";
    let nsswitch = read_some(host).map(|text| nsswitch(&text));
    tmpfs("/sys")?;
    let bound = (|| {
        for (name, text) in
            [(host, nsswitch.ok()), ("/etc/resolv.conf", Some(RESOLV_CONF.to_owned()))]
        {
            // Where the host has none (musl, or a dangling link) there is nothing to bind over and nothing to override.
            let (Some(text), true) = (text, Path::new(name).exists()) else { continue };
            let file = Path::new("/sys").join(Path::new(name).file_name().unwrap_or_default());
            fs::write(&file, text)?;
            bind(&file, name)?;
        }
        Ok(())
    })();
    umount2("/sys", MntFlags::MNT_DETACH)?;
    bound
}

/// The host's text with the line about hosts replaced: names come from the hosts file first, whatever the host prefers (with
/// systemd's `resolve` before `files` a name unknown to the host ends there).
fn nsswitch(host: &str) -> String {
    let mut text: String = host
        .lines()
        .filter(|line| !line.trim_start().starts_with("hosts:"))
        .flat_map(|line| [line, "\n"])
        .collect();
    text.push_str("hosts: files dns\n");
    text
}

fn read_some(path: &str) -> io::Result<String> {
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(fs::File::open(path)?, MAX_NSSWITCH), &mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A sysfs of this network namespace over the host's, with the host's cgroups bound back into it.
fn fresh_sysfs() -> io::Result<()> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let cgroups = open("/sys/fs/cgroup", flags, Mode::empty()).ok();
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // Where the host's own is read-only (containers), only a read-only one is allowed.
    mount_plain(Some("sysfs"), "/sys", Some("sysfs"), quiet).or_else(|_| {
        mount_plain(Some("sysfs"), "/sys", Some("sysfs"), quiet | MsFlags::MS_RDONLY)
    })?;
    if let Some(cgroups) = cgroups {
        let source = format!("/proc/self/fd/{}", cgroups.as_raw_fd());
        // Without: batch systems and runtimes that look at their limits see none. Nothing breaks.
        let _ = bind(Path::new(&source), "/sys/fs/cgroup");
    }
    Ok(())
}

fn tmpfs(target: &str) -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    Ok(mount(Some("tmpfs"), target, Some("tmpfs"), flags, Some("mode=0755,size=256k"))?)
}

fn bind(source: &Path, target: &str) -> io::Result<()> {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    Ok(mount(Some(source), target, None::<&str>, flags, None::<&str>)?)
}

fn mount_plain(
    source: Option<&str>,
    target: &str,
    kind: Option<&str>,
    flags: MsFlags,
) -> io::Result<()> {
    Ok(mount(source, target, kind, flags, None::<&str>)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_line_about_hosts_changes() {
        let host = "# comment\npasswd: files sss\nhosts:  resolve [!UNAVAIL=return] files\n hosts: x\nhostsx: y";
        assert_eq!(nsswitch(host), "# comment\npasswd: files sss\nhostsx: y\nhosts: files dns\n");
        assert_eq!(nsswitch(""), "hosts: files dns\n");
    }
}
