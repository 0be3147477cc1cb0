//! Programs that the tests compile or fetch: kept below `target`, shown to hosts under `/run/lab`.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};

use crate::binaries::{cache_directory, programs_directory};
use crate::harness::skip;

/// Compiles `programs/SOURCE.c` with a compiler and its options, unless that has been done since
/// the source last changed, and gives the path by which every host finds the result.
///
/// # Errors
///
/// Skipped where the compiler is not installed; the compiler's messages where it fails.
pub fn compile(source: &str, compiler: &str, options: &[&str]) -> Result<String> {
    let from = programs_directory().join(format!("{source}.c"));
    let name = format!("{source}.{}", compiler.rsplit('/').next().unwrap_or(compiler));
    let to = cache_directory("programs")?.join(&name);
    let there = format!("/run/lab/programs/{name}");
    if is_newer(&to, &from) {
        return Ok(there);
    }
    // Another run may be doing the same: whoever is last replaces the file in one step.
    let fresh = to.with_extension(fresh_suffix());
    let output = Command::new(compiler)
        .args(["-O2", "-Wall", "-o"])
        .arg(&fresh)
        .arg(&from)
        .args(options)
        .output();
    let output = match output {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return skip(format!("{compiler} is not installed; run: make setup"));
        }
        Err(error) => return Err(error).with_context(|| format!("run {compiler}")),
    };
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "compile {}: {said}", from.display());
    fs::rename(&fresh, &to).with_context(|| format!("put {} in its place", to.display()))?;
    Ok(there)
}

/// A suffix that no other run or thread uses.
pub fn fresh_suffix() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("new{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Skips the check unless every one of `names` is installed on this machine.
///
/// # Errors
///
/// Skipped, naming the missing one.
pub fn need(names: &[&str]) -> Result<()> {
    for name in names {
        let found = ["/usr/local/bin", "/usr/bin", "/usr/sbin", "/bin", "/sbin"]
            .iter()
            .any(|directory| Path::new(directory).join(name).is_file());
        if !found {
            return skip(format!("{name} is not installed; run: make setup"));
        }
    }
    Ok(())
}

fn is_newer(made: &Path, source: &Path) -> bool {
    let time = |path: &Path| fs::metadata(path).and_then(|data| data.modified()).ok();
    match (time(made), time(source)) {
        (Some(made), Some(source)) => made > source,
        (None, _) | (_, None) => false,
    }
}
