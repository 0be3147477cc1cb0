//! Processes: forking while single-threaded, leaving the terminal, limits, and finding and ending those inside a namespace.

use std::{
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    process::Command,
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    sched::{CpuSet, sched_setaffinity},
    sys::{
        prctl,
        resource::{Resource, setrlimit},
        signal::{SigHandler, SigSet, Signal, kill, signal},
        stat::Mode,
        wait::{WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid, dup2_stderr, dup2_stdin, dup2_stdout, fork, setsid},
};

use super::{clock, fd::FileId, poll};

/// How many threads this process has.
///
/// # Errors
/// `/proc` cannot be read.
pub fn thread_count() -> io::Result<usize> {
    Ok(fs::read_dir("/proc/self/task")?.count())
}

/// A child made by [`fork_child`]. Not waited for when dropped.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
}

impl Child {
    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// Waits for its end: the exit status, or 128 and the signal's number.
    ///
    /// # Errors
    /// The system's: somebody else has waited for it.
    pub fn wait(self) -> io::Result<i32> {
        loop {
            match waitpid(self.pid, None) {
                Ok(WaitStatus::Exited(_, code)) => return Ok(code),
                Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(128 + signal as i32),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Forks; the child runs `body` and exits with what it returns (a panic is 101), without running anything that belongs to the
/// parent's end (destructors of the caller's frames, `atexit`).
///
/// # Errors
/// `ResourceBusy` when this process has several threads (a fork would copy their locks, and no user namespace could be made or
/// entered); else the system's.
pub fn fork_child(body: impl FnOnce() -> i32) -> io::Result<Child> {
    if thread_count()? != 1 {
        return Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            "this process has several threads",
        ));
    }
    // SAFETY: single-threaded (asked above, and nobody else could start a thread since): the child may do anything.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(Child { pid: child }),
        ForkResult::Child => {
            let code = catch_unwind(AssertUnwindSafe(body)).unwrap_or(101);
            exit_now(code)
        }
    }
}

/// Ends this process at once: no destructors, no `atexit`, no flushing.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: always sound; does not return.
    unsafe { libc::_exit(code) }
}

/// Leaves the terminal and the caller's pipes: a new session, standard input, output and error on `/dev/null`, working directory
/// `/`. The caller must not lead a process group (a process just spawned or forked does not).
///
/// # Errors
/// The system's.
pub fn detach() -> io::Result<()> {
    match setsid() {
        // Leading a group alone is what a spawned child with a group of its own does: it has left already.
        Ok(_) | Err(Errno::EPERM) => {}
        Err(error) => return Err(error.into()),
    }
    close_standard_streams()?;
    std::env::set_current_dir("/")
}

/// Puts standard input, output and error on `/dev/null`.
///
/// # Errors
/// The system's.
pub fn close_standard_streams() -> io::Result<()> {
    let null = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    Ok(())
}

/// No core files, ever: they would hold keys.
///
/// # Errors
/// The system's.
pub fn forbid_core_files() -> io::Result<()> {
    Ok(setrlimit(Resource::RLIMIT_CORE, 0, 0)?)
}

/// Nobody of the same uid may read our memory or `/proc/self/fd` from now on. After this no user namespace can be made here: its
/// maps in `/proc/self` belong to root then, so the builder is forked before.
///
/// # Errors
/// The system's.
pub fn forbid_inspection() -> io::Result<()> {
    Ok(prctl::set_dumpable(false)?)
}

/// Has the kernel send this process SIGKILL when the thread that started it ends.
///
/// # Errors
/// `BrokenPipe` when that parent (`parent`, a process id) is gone already; else the system's.
pub fn die_with_parent(parent: i32) -> io::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    if Pid::parent().as_raw() == parent { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
}

/// Closes every descriptor from `first` on that this process has, except `keep`. For a process at its start that was handed more
/// than it asked for.
///
/// # Errors
/// The system's.
pub fn close_from(first: RawFd, keep: &[RawFd]) -> io::Result<()> {
    let mut open: Vec<RawFd> = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        open.extend(name.to_str().and_then(|text| text.parse::<RawFd>().ok()));
    }
    for number in open.into_iter().filter(|n| *n >= first && !keep.contains(n)) {
        // Only what exec left open: what this process opened itself has the flag and an owner.
        // SAFETY: asks for flags only.
        let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
        if flags >= 0 && flags & libc::FD_CLOEXEC == 0 {
            // SAFETY: left open by exec and owned by nobody (owners set close-on-exec, see `fd::inherited`).
            unsafe { libc::close(number) };
        }
    }
    Ok(())
}

/// Hands descriptors to the program `command` starts: in the child they stay open under the numbers they have here (returned in
/// order), while in this process they stay closed on exec. They are kept open as long as `command` lives.
pub fn pass_fds(command: &mut Command, fds: Vec<OwnedFd>) -> Vec<RawFd> {
    let numbers: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let start = move || {
        for fd in &fds {
            // SAFETY: clears a flag of an open descriptor; async-signal-safe.
            if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, 0) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: between fork and exec only fcntl is called, which is async-signal-safe, and nothing allocates.
    unsafe { command.pre_exec(start) };
    numbers
}

/// Restores SIGPIPE's default action before this process execs a user's program: Rust's start-up ignores it, and an ignored signal
/// stays ignored across exec.
pub fn restore_sigpipe() {
    // SAFETY: installs the default action; no handler of ours is replaced.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
}

/// Gives every signal but SIGPIPE its default action and blocks none. What a shell ignores for its background jobs, and what a
/// caller blocks, would otherwise be inherited down to the programs of ssh sessions: Control-C would not reach them.
pub fn forget_callers_signals() {
    for each in Signal::iterator() {
        // SIGKILL and SIGSTOP refuse, which is fine: they cannot be ignored. SIGPIPE stays as Rust's start-up has it.
        if each != Signal::SIGPIPE {
            // SAFETY: installs the default action; for the first lines of `main`, before any handler of ours.
            let _ = unsafe { signal(each, SigHandler::SigDfl) };
        }
    }
    let _ = SigSet::empty().thread_set_mask();
}

/// A process that was found inside a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Process id as seen from here.
    pub pid: i32,
    /// Its command line joined by blanks, control characters removed, at most 200 characters; its short name where there is none.
    pub command: String,
}

/// The processes whose network namespace is that of the open file `namespace`, this process aside, by process id. Only those this
/// user may inspect are seen, which his own are.
///
/// # Errors
/// `/proc` cannot be read.
pub fn inside(namespace: impl AsFd) -> io::Result<Vec<Found>> {
    let wanted = FileId::of(namespace)?;
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Ok(entry) = entry else { continue };
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        if pid != own && is_inside(pid, wanted) {
            found.push(Found { pid, command: command_line(&entry.path()) });
        }
    }
    found.sort_by_key(|process| process.pid);
    Ok(found)
}

fn is_inside(pid: i32, namespace: FileId) -> bool {
    // A process that has just ended, or belongs to somebody else, is not inside as far as we may know.
    FileId::of_path(Path::new(&format!("/proc/{pid}/ns/net"))).is_ok_and(|id| id == namespace)
}

fn command_line(process: &Path) -> String {
    let read = |name: &str| fs::read(process.join(name)).unwrap_or_default();
    let mut bytes = read("cmdline");
    if bytes.is_empty() {
        bytes = read("comm");
    }
    let text: String = String::from_utf8_lossy(&bytes)
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(200)
        .collect();
    text.trim_end().to_owned()
}

/// Sends `signal` to every process inside `namespace` except `spare`, and waits up to `patience` for all of them to end. Each is
/// held by a pidfd and looked at again before the signal, so no number is hit that has been given to somebody else (on a kernel
/// without pidfds the moment between look and signal remains). Returns those that are inside then; processes may have been started
/// meanwhile, so a caller that wants none asks again.
///
/// # Errors
/// `/proc` cannot be read.
pub fn end_inside(
    namespace: impl AsFd,
    signal: Signal,
    spare: &[i32],
    patience: Duration,
) -> io::Result<Vec<Found>> {
    /// How often to look where nothing tells us.
    const GLANCE: Duration = Duration::from_millis(20);
    let namespace = namespace.as_fd();
    let wanted = FileId::of(namespace)?;
    let (mut held, mut named) = (Vec::new(), Vec::new());
    for process in inside(namespace)? {
        if spare.contains(&process.pid) {
            continue;
        }
        match PidFd::open(process.pid) {
            Ok(pidfd) => {
                if is_inside(process.pid, wanted) && pidfd.signal(signal).is_ok() {
                    held.push(pidfd);
                }
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {
                if kill(Pid::from_raw(process.pid), signal).is_ok() {
                    named.push(process.pid);
                }
            }
            // It has ended.
            Err(_) => {}
        }
    }
    let deadline = clock::since_boot().saturating_add(patience);
    let left = || deadline.saturating_sub(clock::since_boot());
    for pidfd in held {
        pidfd.wait(left())?;
    }
    while named.iter().any(|pid| is_inside(*pid, wanted)) && !left().is_zero() {
        std::thread::sleep(GLANCE);
    }
    Ok(inside(namespace)?.into_iter().filter(|process| !spare.contains(&process.pid)).collect())
}

/// A process held by descriptor: its number cannot be given to another while it is asked.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl PidFd {
    /// Of a running process.
    ///
    /// # Errors
    /// `ESRCH`: there is none; `ENOSYS`: Linux older than 5.3.
    pub fn open(pid: i32) -> io::Result<Self> {
        // SAFETY: no pointers; the kernel returns a new descriptor (closed on exec) or -1.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let fd = RawFd::try_from(fd).map_err(|_| io::ErrorKind::InvalidData)?;
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made for us.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// `ESRCH`: it has ended; `EPERM`.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        // SAFETY: a null siginfo is allowed and means "as kill(2) does".
        let done = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.0.as_raw_fd(),
                signal as i32,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Waits up to `patience` for its end; whether it has ended.
    ///
    /// # Errors
    /// The system's.
    pub fn wait(&self, patience: Duration) -> io::Result<bool> {
        Ok(poll::readable([self.0.as_fd()], Some(patience))?[0])
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Binds the calling thread to one core.
///
/// # Errors
/// `InvalidInput`: there is no such core, or it is not ours to use.
pub fn bind_to_core(core: u16) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(core.into())?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;

    #[test]
    fn a_process_with_threads_may_not_fork() {
        std::thread::scope(|scope| {
            let (send, receive) = std::sync::mpsc::channel::<()>();
            scope.spawn(move || receive.recv());
            assert_eq!(fork_child(|| 0).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
            drop(send);
        });
    }

    #[test]
    fn passed_descriptors_keep_their_number_in_the_child_alone() {
        let (reader, writer) = io::pipe().unwrap();
        let mut command = Command::new("/bin/sh");
        let numbers = pass_fds(&mut command, vec![writer.into()]);
        let script = format!("echo here >&{}", numbers[0]);
        let status = command.args(["-c", &script]).stdin(Stdio::null()).status().unwrap();
        assert!(status.success());
        drop(command);
        assert_eq!(io::read_to_string(reader).unwrap(), "here\n");
    }

    #[test]
    fn processes_of_this_namespace_are_found_and_held() {
        let own = fs::File::open("/proc/self/ns/net").unwrap();
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let all = inside(&own).unwrap();
        assert!(!all.iter().any(|p| p.pid == i32::try_from(std::process::id()).unwrap()));
        assert!(all.iter().any(|p| p.pid == pid));
        let held = PidFd::open(pid).unwrap();
        assert!(!held.wait(Duration::ZERO).unwrap());
        held.signal(Signal::SIGKILL).unwrap();
        assert!(held.wait(Duration::from_secs(10)).unwrap());
        child.wait().unwrap();
        assert_eq!(held.signal(Signal::SIGKILL).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }
}
