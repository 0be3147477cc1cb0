//! The programs under test, always built from the current tree.
//!
//! Cargo builds no binaries of other packages for a test, so the first check of a test binary that
//! needs a lab runs `cargo build` for them, with the profile and the target directory that the test
//! itself was built with. When all is fresh that takes a fraction of a second. Set
//! `CLUSTERNET_BIN_DIR` to test binaries from elsewhere (a release, say) instead.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail, ensure};

/// The binaries of the product, as they are called.
pub const BINARIES: [&str; 2] = ["clusternet", "clusternetd"];

/// Programs of the tests' own that hosts find beside them, where they have been built.
pub const TOOLS: [&str; 1] = ["traffic"];

/// Builds the binaries, the first time it is called in this process.
///
/// # Errors
///
/// The build failed; its output has been printed.
pub fn build_once() -> Result<()> {
    static OUTCOME: OnceLock<Result<(), String>> = OnceLock::new();
    OUTCOME
        .get_or_init(|| build().map_err(|error| format!("{error:#}")))
        .clone()
        .map_err(anyhow::Error::msg)
}

fn build() -> Result<()> {
    if std::env::var_os("CLUSTERNET_BIN_DIR").is_some() {
        return Ok(());
    }
    let output = target_directory()?;
    let profile = match output.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        Some(other) => other,
        None => bail!("no profile in {}", output.display()),
    };
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args(["build", "--quiet", "--workspace", "--bins", "--profile", profile])
        .arg("--manifest-path")
        .arg(workspace().join("Cargo.toml"));
    if let Some(target) = output.parent() {
        cargo.arg("--target-dir").arg(target);
    }
    // What the outer cargo says about the test package would look like a change to build scripts
    // of dependencies, and make them build again and again.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "NEXTEST"]
            .iter()
            .any(|prefix| text.starts_with(prefix))
            || text == "LD_LIBRARY_PATH"
        {
            cargo.env_remove(&name);
        }
    }
    let status = cargo.status().context("run cargo build")?;
    ensure!(status.success(), "cargo build of the programs under test: {status}");
    Ok(())
}

/// Where the binary called `name` is.
///
/// # Errors
///
/// It is not there.
pub fn path(name: &str) -> Result<PathBuf> {
    let directory = match std::env::var_os("CLUSTERNET_BIN_DIR") {
        Some(directory) => PathBuf::from(directory),
        None => target_directory()?,
    };
    let path = directory.join(name);
    ensure!(path.is_file(), "{} was not built", path.display());
    path.canonicalize().with_context(|| format!("resolve {}", path.display()))
}

/// A directory that outlives runs, for tools and programs that take long to make. Never read by
/// the product.
///
/// # Errors
///
/// It cannot be made.
pub fn cache_directory(name: &str) -> Result<PathBuf> {
    let path = target_directory()?.join("netns-tests").join(name);
    std::fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
    Ok(path)
}

/// The directory of this package's C programs.
pub fn programs_directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("programs")
}

fn workspace() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package)
}

/// `target/debug` or `target/release`: where this executable is, unless that is `deps` or `examples`.
///
/// # Errors
///
/// The executable is in no directory.
pub fn target_directory() -> Result<PathBuf> {
    let executable = std::env::current_exe().context("find this executable")?;
    let mut above = executable.ancestors().skip(1);
    above
        .find(|path| !["deps", "examples"].iter().any(|name| path.ends_with(name)))
        .map(Path::to_owned)
        .with_context(|| format!("no target directory above {}", executable.display()))
}
