//! Registers and spills, as ptxas tells them. Where there is no ptxas, nothing is told.

use std::collections::HashMap;
use std::io::Write;
use std::process::{Command, Stdio};

/// What a kernel takes of the hardware.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Resources {
    pub(crate) registers: u32,
    /// Bytes stored to local memory for want of registers.
    pub(crate) spilled: u32,
}

/// Asks the ptxas that `CUDA_EMULATOR_PTXAS` names, or the one on the path.
pub(crate) fn resources(ptx: &str, target: &str) -> HashMap<String, Resources> {
    let program = std::env::var_os("CUDA_EMULATOR_PTXAS").unwrap_or_else(|| "ptxas".into());
    let Ok(mut file) = tempfile::NamedTempFile::new() else { return HashMap::new() };
    if file.write_all(ptx.as_bytes()).is_err() {
        return HashMap::new();
    }
    let output = Command::new(program)
        .args(["-v", "--output-file", "/dev/null", "--gpu-name", target])
        .arg(file.path())
        .stdin(Stdio::null())
        .output();
    match output {
        Ok(output) => parse(&String::from_utf8_lossy(&output.stderr)),
        Err(_) => HashMap::new(),
    }
}

/// Reads lines such as `Compiling entry function 'k' for 'sm_80'`, `0 bytes stack frame, 4 bytes
/// spill stores, ...` and `Used 16 registers, ...`.
fn parse(text: &str) -> HashMap<String, Resources> {
    let mut all = HashMap::new();
    let mut kernel = None;
    let mut found = Resources::default();
    for line in text.lines() {
        if let Some(rest) = line.split("Compiling entry function '").nth(1) {
            kernel = rest.split('\'').next().map(str::to_owned);
            found = Resources::default();
        } else if let Some(before) = line.split(" bytes spill stores").next()
            && before.len() < line.len()
        {
            found.spilled = last_number(before);
        } else if let Some(rest) = line.split("Used ").nth(1) {
            found.registers = last_number(rest.split(" registers").next().unwrap_or(""));
            if let Some(kernel) = kernel.take() {
                all.insert(kernel, found);
            }
        }
    }
    all
}

fn last_number(text: &str) -> u32 {
    text.rsplit(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_and_spills_are_found_for_each_kernel() {
        let text = "ptxas info    : Compiling entry function 'a' for 'sm_80'\n\
                    ptxas info    : Function properties for a\n\
                    \x20   8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads\n\
                    ptxas info    : Used 56 registers, 380 bytes cmem[0]\n\
                    ptxas info    : Compiling entry function 'b' for 'sm_80'\n\
                    \x20   0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
                    ptxas info    : Used 16 registers\n";
        let all = parse(text);
        assert_eq!(all["a"], Resources { registers: 56, spilled: 4 });
        assert_eq!(all["b"], Resources { registers: 16, spilled: 0 });
    }
}
