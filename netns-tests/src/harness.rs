//! Runs the checks of one subject, by name, on labs that many of them share: the checks of a group one
//! after the other, some groups side by side.
//!
//! Stands in for libtest's `main`, speaks its command line as far as cargo and nextest use it
//! (`--list --format terse`, `--exact`, `--skip`, `--ignored`, filters), and adds what it lacks: a
//! fixture shared by the checks of a group and remade after one failed, a third outcome `skipped`
//! with its reason, and an end for checks that hang.

use std::any::Any;
use std::collections::VecDeque;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use anyhow::Result;

use crate::clock::now;
use crate::{binaries, host_init};

/// A check that has not ended by now never will; the slowest real one takes a quarter of this.
const CHECK_LIMIT: Duration = Duration::from_secs(600);

/// How many labs are up at a time; each keeps a processor half busy.
const GROUPS_AT_ONCE: usize = 3;

/// What every check says when it cannot make a lab.
const NEEDS_ROOT: &str = "needs root to make network namespaces; run: sudo make test";

/// One named check: a behaviour, in words, and the function that shows it.
pub struct Check<F> {
    name: String,
    run: Arc<Run<F>>,
}

/// What a check does with its group's fixture.
type Run<F> = dyn Fn(&mut F) -> Result<()> + Send + Sync;

impl<F> Clone for Check<F> {
    fn clone(&self) -> Self {
        Self { name: self.name.clone(), run: Arc::clone(&self.run) }
    }
}

impl<F> Check<F> {
    /// A check called `name` that `run` performs on the group's fixture.
    pub fn new(
        name: impl Into<String>,
        run: impl Fn(&mut F) -> Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self { name: name.into(), run: Arc::new(run) }
    }
}

/// The error by which a check says that it cannot run here, and why.
#[derive(Debug)]
struct Skipped(String);

impl Display for Skipped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skipped {}

/// What a check returns when it cannot run on this machine: `return skip("no /dev/kvm")`.
///
/// # Errors
///
/// Always: the error is the outcome.
pub fn skip<T>(reason: impl Into<String>) -> Result<T> {
    Err(Skipped(reason.into()).into())
}

/// Checks that share one fixture.
trait Runnable: Send {
    fn name(&self) -> &'static str;
    fn checks(&self) -> Vec<String>;
    fn run(&mut self, check: usize) -> Result<()>;
    fn forget_fixture(&mut self);
}

struct Group<F> {
    name: &'static str,
    make: fn() -> Result<F>,
    checks: Vec<Check<F>>,
    fixture: Option<F>,
    /// Why the fixture cannot be made: what failed once is not tried for every check.
    broken: Option<String>,
}

impl<F: Send> Runnable for Group<F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn checks(&self) -> Vec<String> {
        self.checks.iter().map(|check| check.name.clone()).collect()
    }

    fn run(&mut self, check: usize) -> Result<()> {
        if let Some(why) = &self.broken {
            anyhow::bail!("no lab: {why}");
        }
        if self.fixture.is_none() {
            let made = catch(self.make).map_err(|error| {
                if error.is::<Skipped>() {
                    return error;
                }
                self.broken = Some(format!("as {}::{}", self.name, self.checks[check].name));
                error.context("make the lab")
            })?;
            self.fixture = Some(made);
        }
        match &mut self.fixture {
            Some(fixture) => (self.checks[check].run)(fixture),
            None => Ok(()),
        }
    }

    fn forget_fixture(&mut self) {
        self.fixture = None;
    }
}

/// The checks of one subject, in groups that each share a fixture.
pub struct Suite {
    groups: Vec<Box<dyn Runnable>>,
}

impl Suite {
    /// An empty suite.
    pub const fn new() -> Self {
        Self { groups: Vec::new() }
    }

    /// Adds checks that run in this order on one fixture, made by `make` when the first of them
    /// runs, dropped after the last, and made anew after one that failed.
    #[must_use]
    pub fn group<F: Send + 'static>(
        mut self,
        name: &'static str,
        make: fn() -> Result<F>,
        checks: Vec<Check<F>>,
    ) -> Self {
        self.groups.push(Box::new(Group { name, make, checks, fixture: None, broken: None }));
        self
    }

    /// Runs what the command line asks for. This is the whole `main` of a test binary.
    pub fn main(self) -> ExitCode {
        if let Some(code) = be_host_if_wanted() {
            return code;
        }
        let arguments = Arguments::from_command_line();
        if arguments.list {
            return self.list(&arguments);
        }
        self.run_wanted(&arguments)
    }

    fn list(&self, arguments: &Arguments) -> ExitCode {
        for group in self.groups.iter().filter(|_| !arguments.ignored) {
            for check in group.checks() {
                println!("{}::{check}: test", group.name());
            }
        }
        ExitCode::SUCCESS
    }

    /// Groups wait for each other's labs most of the time, so a few of them run side by side.
    fn run_wanted(self, arguments: &Arguments) -> ExitCode {
        let started = now();
        let groups = Mutex::new(VecDeque::from(self.groups));
        let (mut passed, mut skipped, mut failures) = (0, 0, Vec::new());
        let (tell, told) = mpsc::channel();
        std::thread::scope(|scope| {
            for _ in 0..arguments.at_once {
                let (groups, tell) = (&groups, tell.clone());
                // A lab dies with the thread that made it: one thread sees a group through.
                scope.spawn(move || {
                    while let Some(group) = groups.lock().ok().and_then(|mut all| all.pop_front()) {
                        run_group(group, arguments, &tell);
                    }
                });
            }
            drop(tell);
            for Report { name, outcome, took } in told {
                match outcome {
                    Ok(()) => {
                        passed += 1;
                        println!("test {name} ... ok ({took:.1} s)");
                    }
                    Err(error) if error.is::<Skipped>() => {
                        skipped += 1;
                        println!("test {name} ... skipped: {error:#}");
                    }
                    Err(error) => {
                        println!("test {name} ... FAILED ({took:.1} s)\n{}\n", explain(&error));
                        failures.push(name);
                    }
                }
            }
        });
        if !failures.is_empty() {
            println!("\nfailures:\n    {}", failures.join("\n    "));
        }
        println!(
            "\ntest result: {}. {passed} passed; {} failed; {skipped} skipped; finished in {:.0} s\n",
            if failures.is_empty() { "ok" } else { "FAILED" },
            failures.len(),
            started.elapsed().as_secs_f64()
        );
        if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(101) }
    }
}

/// What became of a check.
struct Report {
    name: String,
    outcome: Result<()>,
    /// Seconds.
    took: f64,
}

/// Runs the wanted checks of one group, one after the other.
fn run_group(mut group: Box<dyn Runnable>, arguments: &Arguments, tell: &mpsc::Sender<Report>) {
    let root = nix::unistd::geteuid().is_root();
    for (index, check) in group.checks().into_iter().enumerate() {
        let name = format!("{}::{check}", group.name());
        if !arguments.wants(&name) {
            continue;
        }
        let began = now();
        let outcome = if root {
            let _watchdog = Watchdog::start(&name);
            binaries::build_once().and_then(|()| catch(|| group.run(index)))
        } else {
            skip(NEEDS_ROOT)
        };
        if outcome.as_ref().is_err_and(|error| !error.is::<Skipped>()) {
            group.forget_fixture();
        }
        // The one that listens goes last.
        tell.send(Report { name, outcome, took: began.elapsed().as_secs_f64() }).ok();
    }
}

/// Becomes the first process of a host if this process was started for that, and gives the exit
/// status to end with. The first thing in every `main` of a program that makes labs.
pub fn be_host_if_wanted() -> Option<ExitCode> {
    host_init::is_wanted().then(host_init::main)
}

impl Default for Suite {
    fn default() -> Self {
        Self::new()
    }
}

/// Turns a panic (a failed `assert!`) into an error, so that the other checks still run.
fn catch<T>(run: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        Err(anyhow::anyhow!("the check panicked: {}", panic_message(panic.as_ref())))
    })
}

/// The error with its causes and, where a backtrace was asked for, the lines of the test that led
/// to it; the rest of a backtrace says nothing here.
fn explain(error: &anyhow::Error) -> String {
    let mut text = format!("{error:#}");
    let backtrace = error.backtrace().to_string();
    for line in backtrace.lines().filter(|line| line.contains("at ./tests/")) {
        text += "\n   ";
        text += line.trim();
    }
    text
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// Ends the whole test binary, and with it every host, when a check hangs.
struct Watchdog {
    _done: mpsc::Sender<()>,
}

impl Watchdog {
    fn start(name: &str) -> Self {
        let (done, ended) = mpsc::channel();
        let name = name.to_owned();
        std::thread::spawn(move || {
            if ended.recv_timeout(CHECK_LIMIT) == Err(mpsc::RecvTimeoutError::Timeout) {
                println!("test {name} ... FAILED: still running after {CHECK_LIMIT:?}");
                std::process::exit(101);
            }
        });
        Self { _done: done }
    }
}

/// The part of libtest's command line that cargo, nextest and people use.
struct Arguments {
    list: bool,
    exact: bool,
    ignored: bool,
    /// How many groups run side by side.
    at_once: usize,
    filters: Vec<String>,
    skips: Vec<String>,
}

impl Arguments {
    fn from_command_line() -> Self {
        let mut found = Self {
            list: false,
            exact: false,
            ignored: false,
            at_once: GROUPS_AT_ONCE,
            filters: Vec::new(),
            skips: Vec::new(),
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            match word.as_str() {
                "--list" => found.list = true,
                "--exact" => found.exact = true,
                "--ignored" => found.ignored = true,
                "--skip" => found.skips.extend(words.next()),
                "--test-threads" => {
                    let count = words.next().and_then(|count| count.parse().ok());
                    found.at_once = count.unwrap_or(GROUPS_AT_ONCE).max(1);
                }
                "--format" | "--color" | "--logfile" | "-Z" => {
                    words.next();
                }
                filter if !filter.starts_with('-') => found.filters.push(word),
                _ => {} // Flags of libtest that change nothing here, such as --nocapture.
            }
        }
        found
    }

    fn wants(&self, name: &str) -> bool {
        let matches = |pattern: &String| {
            if self.exact { name == pattern } else { name.contains(pattern.as_str()) }
        };
        !self.ignored
            && (self.filters.is_empty() || self.filters.iter().any(matches))
            && !self.skips.iter().any(matches)
    }
}
