//! Correctness under speed: what is sent arrives, every byte of it, whatever the link does and whatever the kernel leaves to us.

mod bulk;
mod keys;
mod pair;
mod relay;
mod sizes;
mod workers;

use std::process::ExitCode;

use netns_tests::harness::Suite;

fn main() -> ExitCode {
    let mut suite = Suite::new()
        // First, since it takes longest, and waits most of that time.
        .group("aged", keys::aged, keys::aged_checks())
        .group("keys", keys::fresh, keys::checks())
        .group("relay", relay::parted, relay::checks())
        .group("workers", workers::lan, workers::checks())
        .group("sizes", sizes::on_a_link, sizes::checks())
        .group("largest", sizes::with_the_largest, sizes::largest_checks());
    for (name, checks) in bulk::groups() {
        suite = suite.group(name, || Ok(()), checks);
    }
    suite.main()
}
