//! The demo's stage: runs commands, shows them and what came out, counts what failed, clears up.

use std::{
    fs::{self, DirBuilder},
    io::{self, PipeReader, Read as _, Write as _},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{fs::DirBuilderExt, process::CommandExt},
    },
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use clusternet::{
    sys::{clock, fd, poll},
    words::key::random_u64,
};
use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
};

use crate::output;

/// No step of the demo takes a tenth of this.
const STEP_LIMIT: Duration = Duration::from_secs(120);

/// What a program that was told to end still has to say.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// How a step went, beside its exit status.
pub(super) enum Outcome {
    /// As it should.
    Good,
    /// Not so: what is missing.
    Bad(String),
}

/// Where everything happens.
pub(super) struct Stage {
    program: PathBuf,
    directory: PathBuf,
    signals: SignalFd,
    interrupted: Option<u8>,
    failed: Vec<String>,
    skipped: Vec<String>,
    passed: u32,
}

/// PVM's console shows what has come in whenever it reads a line.
const RETURN: Duration = Duration::from_millis(500);

/// What is typed into a program: `text`, the return key now and then, and `last` when its output has shown `until`.
struct Typed<'a> {
    text: &'a str,
    until: &'a str,
    last: &'a str,
}

impl Stage {
    /// Makes the directory, and catches the signals that would leave it behind.
    pub(super) fn set() -> anyhow::Result<Self> {
        let mut wanted = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            wanted.add(signal);
        }
        wanted.thread_block().context("block signals")?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals = SignalFd::with_flags(&wanted, flags).context("receive signals")?;
        // Short: sockets of programs lie in it, and their paths are short.
        let name = format!("/tmp/clusternet-demo-{:08x}", random_u64() >> 32);
        let directory = PathBuf::from(name);
        for path in [directory.clone(), directory.join("run")] {
            DirBuilder::new()
                .mode(0o700)
                .create(&path)
                .with_context(|| format!("make {}", path.display()))?;
        }
        Ok(Self {
            program: std::env::current_exe().context("find this program")?,
            directory,
            signals,
            interrupted: None,
            failed: Vec::new(),
            skipped: Vec::new(),
            passed: 0,
        })
    }

    /// A file of the demo.
    pub(super) fn path(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }

    /// Makes a file of the demo.
    pub(super) fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let path = self.directory.join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    }

    /// Begins a scene.
    pub(super) fn say(&self, text: &str) -> anyhow::Result<()> {
        let (bold, plain) = if output::colour() { ("\u{1b}[1m", "\u{1b}[0m") } else { ("", "") };
        output::say(format!("\n{bold}== {text}{plain}"))
    }

    /// Notes what could not be shown, and why.
    pub(super) fn skip(&mut self, what: &str, why: &str) -> anyhow::Result<()> {
        self.skipped.push(what.to_owned());
        output::say(format!("  skipped: {what}: {why}"))
    }

    /// One of our own commands; the rest of the demo depends on it.
    pub(super) fn must(&mut self, words: &[&str]) -> anyhow::Result<()> {
        let failures = self.failed.len();
        self.own(words.first().copied().unwrap_or_default(), words)?;
        if self.failed.len() > failures {
            bail!("the demo cannot go on without that");
        }
        Ok(())
    }

    /// One of our own commands.
    pub(super) fn own(&mut self, what: &str, words: &[&str]) -> anyhow::Result<()> {
        let program = self.program.clone();
        self.step(
            what,
            Command::new(program).args(words),
            &shown("clusternet", words),
            None,
            |_| Outcome::Good,
        )
    }

    /// A program of the system, outside.
    pub(super) fn plain(&mut self, what: &str, words: &[&str]) -> anyhow::Result<()> {
        let Some((program, rest)) = words.split_first() else { return Ok(()) };
        self.step(what, Command::new(program).args(rest), &shown(program, rest), None, |_| {
            Outcome::Good
        })
    }

    /// A program of the system, run in the network on a node.
    pub(super) fn inside(
        &mut self,
        node: &str,
        what: &str,
        words: &[&str],
        judge: impl FnOnce(&str) -> Outcome,
    ) -> anyhow::Result<()> {
        let words = [&["run", "--on", node, "--"], words].concat();
        let program = self.program.clone();
        self.step(
            what,
            Command::new(program).args(&words),
            &shown("clusternet", &words),
            None,
            judge,
        )
    }

    /// The same for one that is typed into.
    #[expect(clippy::too_many_arguments, reason = "one call, each argument named there")]
    pub(super) fn console(
        &mut self,
        node: &str,
        what: &str,
        words: &[&str],
        text: &str,
        until: &str,
        last: &str,
        judge: impl FnOnce(&str) -> Outcome,
    ) -> anyhow::Result<()> {
        let words = [&["run", "--on", node, "--"], words].concat();
        let program = self.program.clone();
        let typed = Typed { text, until, last };
        let mut command = Command::new(program);
        command.args(&words);
        self.step(what, &mut command, &shown("clusternet", &words), Some(&typed), judge)
    }

    fn step(
        &mut self,
        what: &str,
        command: &mut Command,
        line: &str,
        typed: Option<&Typed<'_>>,
        judge: impl FnOnce(&str) -> Outcome,
    ) -> anyhow::Result<()> {
        if self.interrupted.is_some() {
            bail!("interrupted");
        }
        output::say(format!("$ {line}"))?;
        let (status, text) = self.perform(command, typed).with_context(|| what.to_owned())?;
        if self.interrupted.is_some() {
            bail!("interrupted");
        }
        // PVM ends its own console with `halt`.
        let well = status.is_some_and(|status| status.success()) || typed.is_some();
        let bad = match (well, status, judge(&text)) {
            (true, _, Outcome::Good) => None,
            (true, _, Outcome::Bad(why)) => Some(why),
            (false, Some(status), _) => Some(status.to_string()),
            (false, None, _) => Some(format!("no end within {} s", STEP_LIMIT.as_secs())),
        };
        match bad {
            None => self.passed += 1,
            Some(why) => {
                output::say(format!("  FAILED: {what}: {why}"))?;
                self.failed.push(what.to_owned());
            }
        }
        Ok(())
    }

    /// Runs it to its end, showing what it says; `None` where it had to be killed.
    fn perform(
        &mut self,
        command: &mut Command,
        typed: Option<&Typed<'_>>,
    ) -> anyhow::Result<(Option<ExitStatus>, String)> {
        let (reader, writer) = io::pipe().context("make a pipe")?;
        command
            .env("XDG_RUNTIME_DIR", self.directory.join("run"))
            .env("XDG_STATE_HOME", self.directory.join("state"))
            .env_remove("CLUSTERNET_INSTANCE")
            .stdin(if typed.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::from(OwnedFd::from(writer.try_clone().context("duplicate a pipe")?)))
            .stderr(Stdio::from(OwnedFd::from(writer)))
            // A terminal's Ctrl-C is for the demo, which ends the rest in good order.
            .process_group(0);
        let mut child = command.spawn().context("start it")?;
        // The command holds the pipe's other end open.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut input = child.stdin.take();
        if let (Some(input), Some(typed)) = (&mut input, typed) {
            let _ = input.write_all(typed.text.as_bytes());
        }
        let mut text = String::new();
        let mut shown = 0;
        let deadline = clock::now().instant + STEP_LIMIT;
        let mut last = typed;
        let mut typed_at = clock::now().instant;
        let ended = self.listen(&reader, deadline, &mut child, |piece| {
            text.push_str(piece);
            let now = clock::now().instant;
            if let Some(input) = input.as_mut().filter(|_| now.duration_since(typed_at) >= RETURN) {
                let _ = input.write_all(b"\n");
                typed_at = now;
            }
            if let Some(typed) = last.filter(|typed| text.contains(typed.until)) {
                if let Some(mut input) = input.take() {
                    let _ = input.write_all(typed.last.as_bytes());
                }
                last = None;
            }
            if let Some(end) = text.rfind('\n') {
                for line in text[shown..=end].lines().filter(|line| says_something(line)) {
                    output::say(format!("  {line}"))?;
                }
                shown = end + 1;
            }
            Ok(())
        });
        if ended.as_ref().is_ok_and(Option::is_none) || ended.is_err() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let rest = text[shown..].trim_end();
        if says_something(rest) {
            output::say(format!("  {rest}"))?;
        }
        Ok((ended?, text))
    }

    /// Reads to the end of the child, and a little longer: children of its own may hold the pipe for ever.
    fn listen(
        &mut self,
        mut reader: &PipeReader,
        mut deadline: Instant,
        child: &mut Child,
        mut hear: impl FnMut(&str) -> anyhow::Result<()>,
    ) -> anyhow::Result<Option<ExitStatus>> {
        fd::set_nonblocking(reader).context("prepare a pipe")?;
        let mut status = None;
        let mut piece = [0; 4096];
        loop {
            let left = deadline.saturating_duration_since(clock::now().instant);
            let pause = left.min(Duration::from_millis(50));
            let [readable, signal] =
                poll::readable([reader.as_fd(), self.signals.as_fd()], Some(pause))
                    .context("wait for the program")?;
            if signal && let Ok(Some(signal)) = self.signals.read_signal() {
                self.interrupted = Some(u8::try_from(signal.ssi_signo).unwrap_or(2));
                return Ok(None);
            }
            if readable {
                match reader.read(&mut piece) {
                    Ok(0) => return Ok(Some(child.wait().context("wait for the program")?)),
                    Ok(length) => hear(&String::from_utf8_lossy(&piece[..length]))?,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error).context("hear the program"),
                }
            } else if status.is_some() {
                return Ok(status);
            } else {
                hear("")?;
            }
            if status.is_none() {
                status = child.try_wait().context("ask whether the program has ended")?;
                if status.is_some() {
                    deadline = clock::now().instant + LAST_WORDS;
                }
            }
            if left.is_zero() {
                return Ok(status);
            }
        }
    }

    /// Ends what runs and removes what lies around.
    pub(super) fn clear(&mut self, nodes: &[String]) {
        for node in nodes {
            if !self.directory.join("run/clusternet").join(node).exists() {
                continue;
            }
            let mut command = Command::new(&self.program);
            command
                .args(["leave", "--kill", node])
                .env("XDG_RUNTIME_DIR", self.directory.join("run"))
                .env("XDG_STATE_HOME", self.directory.join("state"))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .process_group(0);
            let _ = command.status();
        }
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            output::warn(&format!("remove {}: {error}", self.directory.display()));
        }
    }

    /// The signal that ended it early.
    pub(super) fn interrupted(&self) -> Option<u8> {
        self.interrupted
    }

    /// How much failed.
    pub(super) fn failures(&self) -> usize {
        self.failed.len()
    }

    /// The last line.
    pub(super) fn summary(&self) -> anyhow::Result<()> {
        let list =
            |what: &[String]| if what.is_empty() { "nothing".to_owned() } else { what.join(", ") };
        output::say(format!(
            "{} steps went well; failed: {}; skipped: {}",
            self.passed,
            list(&self.failed),
            list(&self.skipped)
        ))
    }
}

/// Not an empty line, nor a prompt at which nothing was typed.
fn says_something(line: &str) -> bool {
    !line.replace("pvm>", "").trim().is_empty()
}

/// A command line as it would be typed.
fn shown(program: &str, words: &[&str]) -> String {
    let mut line = program.to_owned();
    for word in words {
        line.push(' ');
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,=@%+".contains(c);
        if !word.is_empty() && word.chars().all(plain) {
            line.push_str(word);
        } else {
            line.push('\'');
            line.push_str(&word.replace('\'', r"'\''"));
            line.push('\'');
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_shown_as_they_would_be_typed() {
        assert_eq!(
            shown("clusternet", &["run", "--", "a b", "it's"]),
            r"clusternet run -- 'a b' 'it'\''s'"
        );
    }
}
