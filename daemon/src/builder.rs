//! The builder: the child that makes the namespace, and ends.
//!
//! The keeper forks it once, while it has one thread and may still be inspected: a process with threads can make no user namespace,
//! and one that forbids inspection cannot write its own maps. The child unshares, makes the device, gives it addresses and the
//! machine a name, listens for ssh, and sends every descriptor back ([`clusternet::sys::namespace`] tells it step by step). The
//! keeper never is inside: it could not come back.

use clusternet::sys::namespace::{BuildError, BuildSpec, Built, build_in_child};

/// Forks the builder, waits for its end, and returns what it made. `Built::notes` are for the one who joins to read.
///
/// # Errors
/// Why it could not be made, with the one line an administrator could change where there is one ([`BuildError::remedy`]); nothing
/// is left behind then.
pub fn run(spec: &BuildSpec) -> Result<Built, BuildError> {
    let built = build_in_child(spec)?;
    for note in &built.notes {
        tracing::info!(note, "the namespace is not as it should be");
    }
    tracing::debug!(device = built.device.kind.as_str(), "namespace made");
    Ok(built)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use clusternet::sys::namespace::Backend;

    use super::*;

    #[test]
    fn a_process_with_threads_forks_no_builder() {
        let spec = BuildSpec {
            hostname: "a".to_owned(),
            ipv4: Ipv4Addr::new(10, 99, 0, 1),
            ipv4_prefix: 16,
            ipv6: Ipv6Addr::LOCALHOST,
            ipv6_prefix: 48,
            mtu: 1400,
            queues: 1,
            hosts: "/etc/hosts".into(),
            backend: Backend::Auto,
            ssh_port: true,
        };
        // The test harness has threads.
        let error = run(&spec).unwrap_err();
        assert_eq!(error, BuildError::Threads);
    }
}
