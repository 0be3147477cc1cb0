//! The first process of a host: makes the host's own files, then waits for orphans.
//!
//! A test binary starts itself again with [`MARK`] as its first argument inside new namespaces
//! (`lab.rs`), and comes out here, in [`Suite::main`](crate::harness::Suite::main). As process 1 of
//! the host it takes every process of the host with it when it ends.

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use serde::{Deserialize, Serialize};

/// The first argument of a test binary that is to be a host's first process.
pub(crate) const MARK: &str = "--be-the-first-process-of-a-host";

/// Where the host's own versions of files live before they are bound over the real ones.
const FILES: &str = "/run/lab";

/// What a host is to look like from within.
#[derive(Serialize, Deserialize)]
pub(crate) struct Spec {
    pub(crate) hostname: String,
    pub(crate) users: Vec<SpecUser>,
    /// Mode of the private `/dev/net/tun`; the real one is neither used nor changed.
    pub(crate) tun_mode: u32,
    /// Lines for the host's `/etc/hosts`.
    pub(crate) hosts: String,
    /// Settings written below `/proc/sys`.
    pub(crate) sysctls: Vec<(String, String)>,
    /// What is found in `/usr/local/bin`.
    pub(crate) binaries: Vec<PathBuf>,
    /// Directories of this machine that are shown at `/run/lab/NAME`.
    pub(crate) shares: Vec<(PathBuf, String)>,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct SpecUser {
    pub(crate) name: String,
    pub(crate) uid: u32,
}

/// Whether this process was started to be a host's first.
pub(crate) fn is_wanted() -> bool {
    std::env::args().nth(1).as_deref() == Some(MARK)
}

/// Makes the host, says `ready PID` with the process number seen from outside, and reaps orphans
/// for ever.
pub(crate) fn main() -> ExitCode {
    let outcome = (|| {
        let spec = std::env::args().nth(2).context("no description of the host")?;
        let spec: Spec = serde_json::from_str(&spec).context("read the description of the host")?;
        // The process file system is still the outer one: it knows our outer number.
        let pid = fs::read_link("/proc/self").context("read /proc/self")?;
        make_host(&spec)?;
        println!("ready {}", pid.display());
        std::io::stdout().flush().context("say ready")?;
        reap()
    })();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("host: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn make_host(spec: &Spec) -> Result<()> {
    nix::unistd::sethostname(&spec.hostname).context("set the host name")?;
    mount_at("proc", "proc", "/proc", "")?;
    mount_at("tmpfs", "tmpfs", "/run", "mode=755")?;
    mount_own_sysfs()?;
    mount_at("devpts", "devpts", "/dev/pts", "mode=620,ptmxmode=666,gid=5")?;
    mount_at("tmpfs", "tmpfs", "/dev/shm", "mode=1777")?;

    // What is shown from elsewhere comes first: it may lie below /tmp or /home.
    let own_bin = make_directory(&Path::new(FILES).join("bin"))?;
    for binary in &spec.binaries {
        let name = binary.file_name().with_context(|| format!("{}", binary.display()))?;
        let place = own_bin.join(name);
        fs::write(&place, "").with_context(|| format!("make {}", place.display()))?;
        bind(binary, &place)?;
    }
    bind(&own_bin, Path::new("/usr/local/bin"))?;
    for (directory, name) in &spec.shares {
        bind(directory, &make_directory(&Path::new(FILES).join(name))?)?;
    }
    mount_at("tmpfs", "tmpfs", "/tmp", "mode=1777")?;
    mount_at("tmpfs", "tmpfs", "/var/tmp", "mode=1777")?;
    mount_at("tmpfs", "tmpfs", "/home", "mode=755")?;

    mount_own_etc()?;
    own_file("/etc/passwd", &passwd(spec)?)?;
    own_file("/etc/group", &group(spec)?)?;
    own_file("/etc/hostname", &format!("{}\n", spec.hostname))?;
    own_file("/etc/hosts", &spec.hosts)?;
    // Nobody answers there: unknown names fail at once.
    own_file("/etc/resolv.conf", "nameserver 127.0.0.1\n")?;
    own_tun(spec.tun_mode)?;
    for user in &spec.users {
        make_home(user)?;
    }
    for (name, value) in &spec.sysctls {
        let path = Path::new("/proc/sys").join(name);
        fs::write(&path, value).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// A sysfs that shows this host's interfaces, with the machine's control groups back in place.
fn mount_own_sysfs() -> Result<()> {
    let held = make_directory(&Path::new(FILES).join("cgroup"))?;
    bind(Path::new("/sys/fs/cgroup"), &held)?;
    mount_at("sysfs", "sysfs", "/sys", "")?;
    mount(Some(&held), "/sys/fs/cgroup", None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .context("move the control groups to the new /sys")
}

fn make_directory(path: &Path) -> Result<PathBuf> {
    fs::create_dir_all(path).with_context(|| format!("make {}", path.display()))?;
    Ok(path.to_owned())
}

fn mount_at(kind: &str, source: &str, target: &str, data: &str) -> Result<()> {
    mount(Some(source), target, Some(kind), MsFlags::empty(), Some(data))
        .with_context(|| format!("mount {kind} on {target}"))
}

fn bind(source: &Path, target: &Path) -> Result<()> {
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .with_context(|| format!("bind {} over {}", source.display(), target.display()))
}

/// The machine's `/etc` with changes of the host's own. (Files bound over single ones would vanish
/// as soon as somebody replaced the real one, with `useradd` for instance.)
fn mount_own_etc() -> Result<()> {
    let upper = make_directory(&Path::new(FILES).join("etc"))?;
    let work = make_directory(&Path::new(FILES).join("etc.work"))?;
    let options = format!("lowerdir=/etc,upperdir={},workdir={}", upper.display(), work.display());
    mount_at("overlay", "overlay", "/etc", &options)
}

fn own_file(path: &str, text: &str) -> Result<()> {
    // What is there may be a link to somewhere else.
    fs::remove_file(path).ok();
    fs::write(path, text).with_context(|| format!("write {path}"))?;
    fs::set_permissions(path, Permissions::from_mode(0o644))
        .with_context(|| format!("set the mode of {path}"))
}

/// The machine's own accounts (daemons that drop privileges want them) and the host's users.
fn passwd(spec: &Spec) -> Result<String> {
    let mut text = system_lines("/etc/passwd")?;
    for SpecUser { name, uid } in &spec.users {
        text += &format!("{name}:x:{uid}:{uid}:{name}:/home/{name}:/bin/bash\n");
    }
    Ok(text)
}

fn group(spec: &Spec) -> Result<String> {
    let mut text = system_lines("/etc/group")?;
    for SpecUser { name, uid } in &spec.users {
        text += &format!("{name}:x:{uid}:\n");
    }
    Ok(text)
}

/// Lines of an account file whose number belongs to the system, so that no person of the real
/// machine exists on the host.
fn system_lines(path: &str) -> Result<String> {
    let text = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    let is_system = |line: &&str| {
        line.split(':').nth(2).and_then(|n| n.parse::<u32>().ok()).is_some_and(|n| n < 1000)
    };
    Ok(text.lines().filter(is_system).map(|line| format!("{line}\n")).collect())
}

fn own_tun(mode: u32) -> Result<()> {
    let path = Path::new(FILES).join("tun");
    mknod(&path, SFlag::S_IFCHR, Mode::from_bits_truncate(mode), makedev(10, 200))
        .context("make a private tun node")?;
    fs::set_permissions(&path, Permissions::from_mode(mode)).context("set the tun node's mode")?;
    let real = Path::new("/dev/net/tun");
    if real.exists() { bind(&path, real) } else { Ok(()) }
}

/// Home and runtime directory as a login makes them.
fn make_home(user: &SpecUser) -> Result<()> {
    let home = PathBuf::from(format!("/home/{}", user.name));
    let runtime = PathBuf::from(format!("/run/user/{}", user.uid));
    for directory in [&home, &runtime] {
        fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    }
    for file in fs::read_dir("/etc/skel").context("read /etc/skel")? {
        let file = file.context("read /etc/skel")?;
        if file.path().is_file() {
            let copy = home.join(file.file_name());
            fs::copy(file.path(), &copy).with_context(|| format!("make {}", copy.display()))?;
            chown(&copy, Some(user.uid), Some(user.uid)).context("give away a home's file")?;
        }
    }
    for directory in [&home, &runtime] {
        fs::set_permissions(directory, Permissions::from_mode(0o700))
            .and_then(|()| chown(directory, Some(user.uid), Some(user.uid)))
            .with_context(|| format!("give away {}", directory.display()))?;
    }
    Ok(())
}

/// Waits for processes whose parents are gone, so that "nothing is left" can be seen in `/proc`.
fn reap() -> Result<()> {
    let children = SigSet::from(Signal::SIGCHLD);
    children.thread_block().context("block SIGCHLD")?;
    loop {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => break,
                Ok(_) | Err(_) => {}
            }
        }
        children.wait().context("wait for SIGCHLD")?;
    }
}
