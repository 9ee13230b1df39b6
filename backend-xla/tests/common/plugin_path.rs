//! Where the plugins are that tests use.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// The plugin `cpu` or `tpu`: what `UNDERSTORY_PJRT_CPU_PLUGIN` (or `.._TPU_..`) names, else
/// fetched, pinned by hash.
pub(crate) fn plugin_path(kind: &str) -> PathBuf {
    let variable = format!("UNDERSTORY_PJRT_{}_PLUGIN", kind.to_uppercase());
    if let Some(path) = std::env::var_os(&variable) {
        return path.into();
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/pjrt_plugin.py");
    let output = Command::new("python3").arg(&script).arg(kind).output().expect("python3 runs");
    assert!(
        output.status.success(),
        "{} failed; set {variable} to a plugin instead:\n{}",
        script.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
}
