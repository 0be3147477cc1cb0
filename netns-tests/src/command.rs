//! Commands on a host: built, run with a limit, and taken down with all they started.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::clock::{now, wait_until};
use crate::lab::Host;

/// Far more than any command of a test needs, unless it says so.
const DEFAULT_LIMIT: Duration = Duration::from_secs(60);

/// How long after a command's end its output may still be open before we stop reading: a process
/// that it left behind holds it.
const DRAIN: Duration = Duration::from_secs(2);

/// A shell command to be run on a host, by default as the host's first user.
#[must_use]
pub struct Cmd<'h> {
    host: &'h Host,
    script: String,
    user: Option<String>,
    environment: Vec<(String, String)>,
    unset: Vec<String>,
    stdin: Vec<u8>,
    limit: Duration,
}

/// What came of a command.
#[derive(Debug)]
pub struct Outcome {
    /// Where it ran and what it was.
    pub what: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output; bytes that are not UTF-8 replaced.
    pub stdout: String,
    /// Standard error; bytes that are not UTF-8 replaced.
    pub stderr: String,
    /// Whether something that it left behind still holds its output open.
    pub held_open: bool,
}

/// A command that goes on while the test does other things. Ended on drop.
pub struct Background {
    what: String,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Reader,
    stderr: Reader,
}

impl<'h> Cmd<'h> {
    pub(crate) fn new(host: &'h Host, script: &str) -> Self {
        Self {
            host,
            script: script.to_owned(),
            user: host.users().first().map(|user| user.name.clone()),
            environment: Vec::new(),
            unset: Vec::new(),
            stdin: Vec::new(),
            limit: DEFAULT_LIMIT,
        }
    }

    /// Runs it as another of the host's users.
    pub fn user(mut self, name: &str) -> Self {
        self.user = Some(name.to_owned());
        self
    }

    /// Runs it as root.
    pub fn root(mut self) -> Self {
        self.user = None;
        self
    }

    /// Adds a variable to its environment.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Takes a variable that a login sets out of its environment.
    pub fn without_env(mut self, name: &str) -> Self {
        self.unset.push(name.to_owned());
        self
    }

    /// What it reads from standard input before the end of file; nothing unless said.
    pub fn stdin(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.stdin = input.into();
        self
    }

    /// How long it may take; a minute unless said.
    pub fn limit(mut self, seconds: u64) -> Self {
        self.limit = Duration::from_secs(seconds);
        self
    }

    /// Runs it to its end, whatever its exit status.
    ///
    /// # Errors
    ///
    /// It could not be started or took too long; in that case it has been killed with all of its
    /// children, and what it had printed is in the message.
    pub fn run(mut self) -> Result<Outcome> {
        let (limit, input) = (self.limit, std::mem::take(&mut self.stdin));
        let mut background = self.spawn()?;
        let stdin = background.stdin.take();
        // A thread, since a command that does not read must not stop us from reading.
        let writer = std::thread::spawn(move || {
            if let Some(mut stdin) = stdin {
                // A command that ends without reading is no fault.
                stdin.write_all(&input).ok();
            }
        });
        let outcome = background.wait(limit)?;
        writer.join().ok();
        Ok(outcome)
    }

    /// Runs it to its end and gives its standard output.
    ///
    /// # Errors
    ///
    /// As [`Self::run`]; also when the exit status is not 0.
    pub fn ok(self) -> Result<String> {
        let outcome = self.run()?;
        ensure!(outcome.status.success(), "{outcome}");
        Ok(outcome.stdout)
    }

    /// Runs it to its end, which must be exit status `code`, and gives both outputs in one text.
    ///
    /// # Errors
    ///
    /// As [`Self::run`]; also when it ends in another way.
    pub fn fails(self, code: i32) -> Result<String> {
        let outcome = self.run()?;
        ensure!(outcome.status.code() == Some(code), "expected exit status {code}\n{outcome}");
        Ok(format!("{}{}", outcome.stdout, outcome.stderr))
    }

    /// Starts it, with standard input open for [`Background::write`].
    ///
    /// # Errors
    ///
    /// It could not be started.
    pub fn spawn(self) -> Result<Background> {
        let what = format!(
            "{}@{}$ {}",
            self.user.as_deref().unwrap_or("root"),
            self.host.name(),
            self.script
        );
        if std::env::var_os("CLUSTERNET_TEST_VERBOSE").is_some() {
            eprintln!("{what}");
        }
        let mut command = self.to_command()?;
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {what}"))?;
        let stdin = child.stdin.take();
        let stdout = Reader::start(child.stdout.take());
        let stderr = Reader::start(child.stderr.take());
        Ok(Background { what, child, stdin, stdout, stderr })
    }

    /// `nsenter` into the host, `setpriv` to the user, `env` to the home, then the shell.
    fn to_command(&self) -> Result<Command> {
        let host = self.host;
        let mut command = Command::new("nsenter");
        command.args(["--target", &host.pid().to_string()]);
        command.args(["--net", "--mount", "--uts", "--ipc", "--pid", "--"]);
        command.env_clear();
        let home = match &self.user {
            None => "/root".to_owned(),
            Some(name) => {
                let user = host
                    .users()
                    .iter()
                    .find(|user| user.name == *name)
                    .with_context(|| format!("{} has no user {name}", host.name()))?;
                let uid = user.uid.to_string();
                command.args(["setpriv", "--reuid", &uid, "--regid", &uid, "--init-groups"]);
                command.env("USER", name).env("LOGNAME", name);
                command.env("XDG_RUNTIME_DIR", format!("/run/user/{uid}"));
                format!("/home/{name}")
            }
        };
        command.env("HOME", &home).env("SHELL", "/bin/bash").env("LANG", "C.UTF-8");
        let path = if self.user.is_none() {
            "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        } else {
            "/usr/local/bin:/usr/bin:/bin"
        };
        command.env("PATH", path);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        for name in &self.unset {
            command.env_remove(name);
        }
        command.args(["env", "--chdir", &home, "bash", "-c", &self.script]);
        Ok(command)
    }
}

impl Outcome {
    /// Both outputs in one text.
    pub fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{}", self.what)?;
        f.write_str(&self.stdout)?;
        if !self.stderr.is_empty() {
            writeln!(f, "--- standard error:\n{}", self.stderr.trim_end())?;
        }
        write!(f, "--- {}", self.status)
    }
}

impl Background {
    /// Writes to its standard input.
    ///
    /// # Errors
    ///
    /// It has closed its standard input, or [`Self::end_of_file`] did.
    pub fn write(&mut self, text: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("standard input is closed")?;
        stdin
            .write_all(text.as_bytes())
            .and_then(|()| stdin.flush())
            .with_context(|| format!("write to {}", self.what))
    }

    /// Closes its standard input.
    pub fn end_of_file(&mut self) {
        self.stdin = None;
    }

    /// What it has written to standard output so far.
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// What it has written to standard output so far, byte for byte.
    pub fn stdout_bytes(&self) -> Vec<u8> {
        self.stdout.bytes()
    }

    /// What it has written to standard error so far.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Waits until it has printed `pattern`, on either output, more than `after` times.
    ///
    /// # Errors
    ///
    /// It ended before, or did not print it in time; all it printed is in the message.
    pub fn wait_for(&mut self, pattern: &str, seconds: u64) -> Result<()> {
        self.wait_for_count(pattern, 1, seconds)
    }

    /// Waits until it has printed `pattern` at least `count` times, on both outputs together.
    ///
    /// # Errors
    ///
    /// As [`Self::wait_for`].
    pub fn wait_for_count(&mut self, pattern: &str, count: usize, seconds: u64) -> Result<()> {
        let what = format!("{pattern:?} from {}", self.what);
        let found = wait_until(&what, Duration::from_secs(seconds), || {
            let ended = self.child.try_wait().context("look at the command")?.is_some();
            let text = format!("{}\n{}", self.stdout.text(), self.stderr.text());
            if text.matches(pattern).count() >= count {
                return Ok(Some(true));
            }
            Ok((ended && self.stdout.is_done() && self.stderr.is_done()).then_some(false))
        });
        match found {
            Ok(true) => Ok(()),
            Ok(false) => bail!("it ended without {what}\n{}", self.so_far()),
            Err(error) => bail!("{error:#}\n{}", self.so_far()),
        }
    }

    /// Whether it still runs.
    ///
    /// # Errors
    ///
    /// The operating system does not know.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait().context("look at the command")?.is_none())
    }

    /// Sends a signal to the command itself (not to what it started).
    ///
    /// # Errors
    ///
    /// It has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let inner = children(self.child.id());
        ensure!(!inner.is_empty(), "{} has ended", self.what);
        for pid in inner {
            kill(Pid::from_raw(pid), signal)
                .with_context(|| format!("send {signal} to {}", self.what))?;
        }
        Ok(())
    }

    /// Waits for its end, at most `limit`, and kills it then.
    ///
    /// # Errors
    ///
    /// It did not end in time.
    pub fn wait(mut self, limit: Duration) -> Result<Outcome> {
        let deadline = now() + limit;
        let mut pause = Duration::from_millis(1);
        let status = loop {
            if let Some(status) = self.child.try_wait().context("wait for the command")? {
                break status;
            }
            if now() >= deadline {
                let so_far = self.so_far();
                self.kill_tree();
                bail!("still running after {limit:?}, killed: {so_far}");
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        };
        let drained = wait_until("the end of the output", DRAIN, || {
            Ok((self.stdout.is_done() && self.stderr.is_done()).then_some(()))
        });
        Ok(Outcome {
            what: std::mem::take(&mut self.what),
            status,
            stdout: self.stdout.text(),
            stderr: self.stderr.text(),
            held_open: drained.is_err(),
        })
    }

    /// Ends it with TERM and, after five seconds, KILL, and gives what it printed.
    ///
    /// # Errors
    ///
    /// It cannot be waited for.
    pub fn stop(self) -> Result<Outcome> {
        for pid in children(self.child.id()) {
            kill(Pid::from_raw(pid), Signal::SIGTERM).ok();
        }
        let mut this = self;
        let ended = wait_until("the end", Duration::from_secs(5), || {
            Ok(this.child.try_wait().context("wait")?.map(|_| ()))
        });
        if ended.is_err() {
            this.kill_tree();
        }
        this.wait(Duration::from_secs(5))
    }

    /// Everything it has printed, for messages.
    pub fn so_far(&self) -> String {
        let mut text = format!("{}\n{}", self.what, self.stdout.text());
        let stderr = self.stderr.text();
        if !stderr.is_empty() {
            write!(text, "--- standard error:\n{stderr}").ok();
        }
        text
    }

    fn kill_tree(&mut self) {
        let mut doomed = vec![self.child.id()];
        let mut next = 0;
        while let Some(&pid) = doomed.get(next) {
            doomed.extend(children(pid).into_iter().filter_map(|pid| u32::try_from(pid).ok()));
            next += 1;
        }
        for pid in doomed.into_iter().rev().filter_map(|pid| i32::try_from(pid).ok()) {
            kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.kill_tree();
        }
        self.child.wait().ok();
    }
}

/// The processes that the main thread of `pid` has started and not yet waited for.
fn children(pid: u32) -> Vec<i32> {
    std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect()
}

/// Collects one output of a command.
struct Reader {
    bytes: Arc<Mutex<Vec<u8>>>,
    thread: JoinHandle<()>,
}

impl Reader {
    fn start(source: Option<impl Read + Send + 'static>) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let collected = Arc::clone(&bytes);
        let thread = std::thread::spawn(move || {
            let Some(mut source) = source else { return };
            let mut buffer = [0; 16384];
            while let Ok(count @ 1..) = source.read(&mut buffer) {
                if let Ok(mut collected) = collected.lock() {
                    collected.extend_from_slice(&buffer[..count]);
                }
            }
        });
        Self { bytes, thread }
    }

    fn is_done(&self) -> bool {
        self.thread.is_finished()
    }

    fn bytes(&self) -> Vec<u8> {
        self.bytes.lock().map(|bytes| bytes.clone()).unwrap_or_default()
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }
}

/// Whether `status` is an end by `signal`, seen directly or through a shell.
pub fn ended_by(status: ExitStatus, signal: Signal) -> bool {
    status.signal() == Some(signal as i32) || status.code() == Some(128 + signal as i32)
}

/// `text` as one word of a shell command.
pub fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}
