//! Correctness under speed: what is sent arrives, every byte of it, whatever the link does and whatever the kernel leaves to us.

mod bulk;
mod pair;
mod sizes;

use std::process::ExitCode;

use netns_tests::harness::Suite;

fn main() -> ExitCode {
    let mut suite = Suite::new().group("sizes", sizes::on_a_link, sizes::checks()).group(
        "largest",
        sizes::with_the_largest,
        sizes::largest_checks(),
    );
    for (name, checks) in bulk::groups() {
        suite = suite.group(name, || Ok(()), checks);
    }
    suite.main()
}
