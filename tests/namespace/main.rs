//! Real namespaces, made and entered as an ordinary user, with a readable TUN and without one.
//!
//! A program of its own instead of a test harness: only a process with one thread may make or enter a user namespace, so every
//! test here is a fork of this one. As root the tests run as uid 4242 (and 4243 for the stranger) in a mount namespace of their own
//! where `/dev/net/tun` is what the test needs; otherwise as the user who runs them, and those that need root are skipped.

#![allow(missing_docs, clippy::unwrap_used, reason = "a test program")]

mod desk;
#[path = "../forge/mod.rs"]
mod forge;
mod node;
mod packets;
mod people;
mod processes;
mod refusals;
mod superpackets;

use std::{fs, process::ExitCode};

use clusternet::sys::process::fork_child;
use nix::{
    sys::{
        prctl,
        signal::{Signal, kill},
        wait::waitpid,
    },
    unistd::{Pid, alarm, geteuid, getpid},
};

use crate::desk::Tun;

/// Whether a test can run as anybody.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    Nothing,
    /// It makes other users, or mounts of its own.
    Root,
}
use Needs::{Nothing, Root};

type Test = (&'static str, Needs, fn());

const TESTS: &[Test] = &[
    ("a_node_with_a_tun_has_all_that_programs_need", Nothing, || node::whole_node(Tun::Open)),
    ("a_node_without_a_tun_has_the_same", Nothing, || node::whole_node(Tun::Closed)),
    ("names_are_ours_whatever_the_host_prefers", Root, node::names),
    ("two_instances_are_strangers_to_each_other", Nothing, node::two_instances),
    ("entering_twice_is_once_and_a_sibling_is_out_of_reach", Nothing, node::nested),
    ("a_process_with_threads_is_told_that_it_cannot_enter", Nothing, node::threads),
    ("a_change_of_address_is_noticed", Nothing, node::watched),
    ("the_device_outlives_a_reader_and_ends_with_the_last", Nothing, node::device_life),
    ("a_private_mount_of_the_caller_is_kept", Root, node::callers_mounts),
    ("the_host_is_left_as_it_was", Nothing, node::host_untouched),
    ("packets_cross_a_tun_with_right_checksums", Nothing, || packets::packets(Tun::Open)),
    ("packets_cross_a_packet_socket_likewise", Nothing, || packets::packets(Tun::Closed)),
    ("tcp_superpackets_cross_a_tun_whole", Nothing, || superpackets::tcp(Tun::Open)),
    ("tcp_superpackets_cross_a_packet_socket_whole", Nothing, || superpackets::tcp(Tun::Closed)),
    ("udp_superpackets_cross_a_tun_whole", Nothing, || superpackets::udp(Tun::Open)),
    ("udp_superpackets_cross_a_packet_socket_whole", Nothing, || superpackets::udp(Tun::Closed)),
    ("a_tun_takes_all_that_is_left_of_a_forgers_work", Nothing, || superpackets::forged(Tun::Open)),
    ("a_packet_socket_takes_it_likewise", Nothing, || superpackets::forged(Tun::Closed)),
    ("a_datagram_larger_than_the_link_travels_in_fragments", Root, packets::fragments),
    ("a_local_firewall_is_an_outcome_of_sending", Root, packets::firewall),
    ("another_user_cannot_enter_even_with_the_descriptors", Root, people::strangers),
    ("another_user_cannot_open_the_namespace_of_a_process", Root, people::strangers_by_path),
    ("root_gives_up_its_power_before_a_program_starts", Root, people::root_user),
    ("programs_inside_are_found_and_ended", Nothing, processes::leave),
    ("a_detached_process_has_left_its_terminal", Nothing, processes::detached),
    ("a_hardened_process_shows_nothing_and_dumps_nothing", Nothing, processes::hardened),
    ("a_child_ends_with_its_parent", Nothing, processes::orphan),
    ("a_program_owns_what_it_was_handed_and_no_more", Nothing, processes::heir),
    ("a_tun_that_must_be_and_cannot_says_why", Root, refusals::tun_refused),
    ("no_user_namespaces_is_said_with_the_limit_to_raise", Nothing, refusals::no_user_namespaces),
    ("user_namespaces_that_grant_nothing_are_said_to", Nothing, refusals::nothing_granted),
    ("a_setting_that_must_be_made_and_cannot_is_named", Root, refusals::read_only_settings),
    ("a_missing_hosts_file_is_named", Nothing, refusals::no_hosts),
    ("the_probe_says_what_works", Nothing, refusals::probe_works),
    ("the_probe_says_what_an_administrator_could_change", Root, refusals::probe_refused),
];

/// No test takes a tenth of this.
const TEST_SECONDS: u32 = 120;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let mut filters = Vec::new();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--inherited" => return processes::heir_program(arguments),
            "--list" => {
                TESTS.iter().for_each(|(name, _, _)| println!("{name}: test"));
                return ExitCode::SUCCESS;
            }
            "--test-threads" | "--skip" | "--format" | "--color" => drop(arguments.next()),
            flag if flag.starts_with('-') => {}
            filter => filters.push(filter.to_owned()),
        }
    }
    prctl::set_child_subreaper(true).unwrap();
    let mut failed = 0;
    for (name, needs, test) in TESTS {
        if !filters.is_empty() && !filters.iter().any(|filter| name.contains(filter)) {
            continue;
        }
        if *needs == Root && !geteuid().is_root() {
            println!(
                "test {name} ... skipped: it needs root, for other users or mounts of its own"
            );
            continue;
        }
        let status = fork_child(|| {
            alarm::set(TEST_SECONDS);
            test();
            0
        })
        .unwrap()
        .wait()
        .unwrap();
        end_orphans();
        // 77 as automake has it: skipped, and the test has said why.
        let word = match status {
            0 => "ok",
            77 => "skipped",
            _ => {
                failed += 1;
                "FAILED"
            }
        };
        println!("test {name} ... {word}");
    }
    println!("\ntest result: {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What a failed test has left running has become ours: it ends here.
fn end_orphans() {
    let children = || fs::read_to_string(format!("/proc/self/task/{}/children", getpid()));
    while let Ok(text) = children()
        && let Some(child) = text.split_whitespace().find_map(|number| number.parse().ok())
    {
        let child = Pid::from_raw(child);
        let _ = kill(child, Signal::SIGKILL);
        if waitpid(child, None).is_err() {
            return;
        }
    }
}
