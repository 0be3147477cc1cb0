//! `run`, `shell` and `ssh`: become a process of the network and then the command, with nothing left of ourselves in between.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::unix::process::CommandExt,
    process::Command,
};

use anyhow::Context;
use clusternet::{
    api::{Reply, Request, View},
    sys::{account, enter, namespace::Namespaces, process},
};

use super::{On, Run, Ssh};
use crate::{
    control::{self, INSTANCE, Instance, PATIENCE},
    exit, output,
};

/// What `env` and shells say when they fail themselves.
const OWN_FAILURE: u8 = 125;
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

/// Runs a command inside: comes back only when that failed.
pub(super) fn run(arguments: Run) -> anyhow::Result<u8> {
    let mut words = arguments.command.into_iter();
    // clap has asked for at least one.
    let Some(program) = words.next() else { return Ok(OWN_FAILURE) };
    Ok(become_inside(&arguments.on, |_| Ok((program, words.collect()))))
}

/// Becomes the user's shell inside.
pub(super) fn shell(arguments: &On) -> anyhow::Result<u8> {
    Ok(become_inside(arguments, |_| {
        let shell = std::env::var_os("SHELL").filter(|shell| !shell.is_empty());
        let shell = match shell {
            Some(shell) => shell,
            None => account::own().map_or_else(|_| "/bin/sh".into(), |own| own.shell.into()),
        };
        Ok((shell, Vec::new()))
    }))
}

/// Becomes the system's ssh with the instance's configuration.
pub(super) fn ssh(arguments: Ssh) -> anyhow::Result<u8> {
    Ok(become_inside(&arguments.on, |view| {
        if arguments.node.starts_with('-') {
            return Err(exit::wrong_use(format!("{} is not a node", arguments.node)));
        }
        let mut words = vec![OsString::from(arguments.node)];
        words.extend(arguments.command);
        Ok((view.bin.join("ssh").into_os_string(), words))
    }))
}

/// The exit status when it did not come to that. Our own failures have a status of their own, not those of other commands.
fn become_inside(
    on: &On,
    choose: impl FnOnce(&View) -> anyhow::Result<(OsString, Vec<OsString>)>,
) -> u8 {
    let error = match prepare(on, choose) {
        Ok((mut command, program)) => {
            let error = command.exec();
            let missing = error.kind() == io::ErrorKind::NotFound;
            let status = if missing { NOT_FOUND } else { NOT_EXECUTABLE };
            output::complain(&format!("run {}: {error}", program.display()));
            return status;
        }
        Err(error) => error,
    };
    exit::report(&error);
    OWN_FAILURE
}

fn prepare(
    on: &On,
    choose: impl FnOnce(&View) -> anyhow::Result<(OsString, Vec<OsString>)>,
) -> anyhow::Result<(Command, OsString)> {
    let instance = Instance::pick(on.on.as_ref())?;
    let (reply, fds) = instance.ask(&Request::Enter, PATIENCE)?;
    let Reply::Enter(view) = reply else { return Err(control::unexpected(&reply)) };
    let fds = fds.try_into().ok().context("the daemon sent too few descriptors")?;
    let (program, words) = choose(&view)?;

    let namespaces = Namespaces::from_fds(fds);
    let files = enter::View {
        hosts: view.hosts.clone(),
        // Where the daemon writes it, beside the programs.
        ssh_config: Some(view.bin.with_file_name("ssh_config")),
    };
    let entered = enter::enter(&namespaces, &files)?;
    for warning in entered.warnings {
        output::warn(&warning);
    }
    drop(namespaces);
    enter::drop_privileges().context("give up privileges")?;
    process::restore_sigpipe();

    let mut command = Command::new(&program);
    command.args(words).envs(environment(&view)).env(INSTANCE, instance.name.as_str());
    Ok((command, program))
}

/// What the instance adds. `PATH` is the caller's own with the instance's programs in front, a choice of `PVM_PATH` stays.
fn environment(view: &View) -> Vec<(OsString, OsString)> {
    let kept =
        |name: &OsStr| name == "PATH" || (name == "PVM_PATH" && std::env::var_os(name).is_some());
    let mut environment = view.environment.clone();
    environment.retain(|(name, _)| !kept(name));
    environment.push(("PATH".into(), path(view, std::env::var_os("PATH").as_deref())));
    environment
}

/// The instance's own programs first, once.
fn path(view: &View, path: Option<&OsStr>) -> OsString {
    /// What a login shell starts from.
    const DEFAULT: &str = "/usr/local/bin:/usr/bin:/bin";
    let rest = path.filter(|path| !path.is_empty()).unwrap_or_else(|| OsStr::new(DEFAULT));
    let dirs = std::env::split_paths(rest).filter(|directory| *directory != view.bin);
    let all = std::iter::once(view.bin.clone()).chain(dirs);
    std::env::join_paths(all).unwrap_or_else(|_| rest.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_instances_own_programs_come_first_and_once() {
        let view = View {
            hostname: "a".parse().unwrap(),
            hosts: "/r/hosts".into(),
            environment: Vec::new(),
            bin: "/r/bin".into(),
        };
        assert_eq!(path(&view, Some("/usr/bin:/r/bin:/bin".as_ref())), "/r/bin:/usr/bin:/bin");
        assert_eq!(path(&view, None), "/r/bin:/usr/local/bin:/usr/bin:/bin");
    }
}
