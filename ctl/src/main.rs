//! `clusternet`: the command line. Blocking; speaks to the daemon over the control socket.
//!
//! Every command returns the exit status it wants, or an error. Exit statuses: 0 done, 1 the answer is no, 2 wrong use,
//! 3 no daemon; `run` answers with its command's own. A reader that goes away early (`| head`) is success.

mod admin;
mod control;
mod exit;
mod keyfile;
mod node;
mod output;
mod place;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// A rootless, userspace, encrypted virtual LAN for cluster nodes.
#[derive(Debug, Parser)]
#[command(
    name = "clusternet",
    version,
    arg_required_else_help = true,
    after_help = "Two machines, from nothing:
  clusternet init lab --master head --endpoint udp://login.example.org:51820
  clusternet issue a --dir lab        then take lab/master.toml and lab/a.key to the other machine
  clusternet join lab/master.toml     on each of them
  clusternet run -- pvm"
)]
struct Cli {
    /// Say more (twice: everything).
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Admin(admin::AdminCommand),
    #[command(flatten)]
    Node(node::NodeCommand),
    #[command(flatten)]
    Generate(Generate),
}

/// What packagers call.
#[derive(Debug, Subcommand)]
enum Generate {
    /// Print a completion script for a shell.
    #[command(hide = true)]
    Completions {
        /// For which shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write one page per command into a directory.
    #[command(hide = true)]
    Man {
        /// Where the pages go; without it the main one is printed.
        directory: Option<std::path::PathBuf>,
    },
}

/// What every command is told beside its own arguments.
#[derive(Debug, Clone, Copy)]
struct Context {
    /// How often `-v` was given.
    verbose: u8,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let context = Context { verbose: cli.verbose };
    let done = match cli.command {
        Command::Admin(command) => admin::run(command, context),
        Command::Node(command) => node::run(command, context),
        Command::Generate(command) => generate(command),
    };
    match done {
        Ok(status) => ExitCode::from(status),
        Err(error) => exit::report(&error),
    }
}

fn generate(command: Generate) -> anyhow::Result<u8> {
    let mut tree = Cli::command();
    match command {
        Generate::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut tree, "clusternet", &mut script);
            output::print_bytes(&script)?;
        }
        Generate::Man { directory: None } => {
            let mut page = Vec::new();
            clap_mangen::Man::new(tree).render(&mut page)?;
            output::print_bytes(&page)?;
        }
        Generate::Man { directory: Some(directory) } => {
            clap_mangen::generate_to(tree, &directory).map_err(|e| {
                anyhow::anyhow!("write manual pages into {}: {e}", directory.display())
            })?;
        }
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_tree_is_sound() {
        Cli::command().debug_assert();
    }

    /// The arguments of every `clusternet` in a sample, one command each.
    fn commands(sample: &str) -> Vec<Vec<String>> {
        let words = |line: &str| {
            line.split_whitespace().map(|w| w.trim_matches(['"', '\'']).to_owned()).collect()
        };
        let starts = ["ExecStart=%h/.local/bin/clusternet ", "ExecStop=%h/.local/bin/clusternet "];
        let in_unit = sample
            .lines()
            .filter_map(|line| starts.iter().find_map(|start| line.strip_prefix(start)))
            .map(words);
        let in_script = sample
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split_once("clusternet ").map(|(_, rest)| rest))
            .filter(|_| sample.starts_with("#!"))
            .map(|rest| words(rest.split(['>', ';', '&']).next().unwrap_or_default()));
        in_unit.chain(in_script).collect()
    }

    #[test]
    fn the_samples_call_commands_that_exist() {
        let samples = [
            include_str!("../../configs/clusternet@.service"),
            include_str!("../../configs/slurm-job.sh"),
        ];
        let all: Vec<Vec<String>> = samples.iter().flat_map(|sample| commands(sample)).collect();
        assert_eq!(all.len(), 6, "{all:?}");
        for mut command in all {
            command.retain(|word| word != "EXIT" && !word.is_empty());
            command.insert(0, "clusternet".to_owned());
            command
                .iter_mut()
                .for_each(|word| *word = word.replace("%i", "lab").replace("$instance", "job7"));
            Cli::try_parse_from(&command).unwrap_or_else(|error| panic!("{command:?}: {error}"));
        }
    }

    #[test]
    fn every_command_has_an_example() {
        for command in Cli::command().get_subcommands().filter(|c| !c.is_hide_set()) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("clusternet "), "{} has no example", command.get_name());
        }
    }
}
