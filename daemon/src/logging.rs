//! The log: standard error, which the keeper has put on a file unless it runs in the foreground.

use tracing_subscriber::EnvFilter;

/// What is logged unless `CLUSTERNET_LOG` or `[node] log` says otherwise. boringtun calls ordinary expiry an error: what it does is
/// said in our own words.
const DEFAULT: &str = "info,russh=warn,boringtun=off";

/// Starts logging; once per process. A filter that cannot be understood is replaced by the default, and said to be.
pub(crate) fn start(wanted: Option<&str>) {
    let environment = std::env::var("CLUSTERNET_LOG").ok();
    let wanted = environment.as_deref().or(wanted).unwrap_or(DEFAULT);
    let (filter, complaint) = match EnvFilter::try_new(wanted) {
        Ok(filter) => (filter, None),
        Err(error) => (EnvFilter::new(DEFAULT), Some(error)),
    };
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    // A second start in one process is a test's.
    let _ = subscriber.try_init();
    if let Some(error) = complaint {
        tracing::warn!(filter = wanted, %error, "the log filter cannot be understood");
    }
}
