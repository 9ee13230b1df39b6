//! Executables: what a compilation yields, loaded on devices or not.

use std::{fmt, slice};

use super::{
    Client, PjrtError, Plugin, Value, options,
    plugin::{arguments, call, destroy, read_string},
    sys,
};

/// A compiled program, on no device. It answers questions, and can be serialized.
pub struct Executable {
    plugin: Plugin,
    raw: *mut sys::PJRT_Executable,
}

// SAFETY: executables are immutable and may be used from any thread.
unsafe impl Send for Executable {}
// SAFETY: as above.
unsafe impl Sync for Executable {}

/// The memory that a program needs on each device, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CompiledMemory {
    /// The machine code.
    pub code: u64,
    /// The arguments, donated ones included.
    pub arguments: u64,
    /// The results, aliased ones included.
    pub outputs: u64,
    /// The part of the results that lies in donated arguments.
    pub aliased: u64,
    /// Scratch memory.
    pub temporary: u64,
    /// The most that is alive at one time. Zero where the plugin does not say.
    pub peak: u64,
}

impl CompiledMemory {
    /// Arguments, scratch, code, and the results that don't lie in arguments.
    pub fn total(&self) -> u64 {
        self.arguments + self.temporary + self.code + self.outputs.saturating_sub(self.aliased)
    }
}

/// The program after optimization and partitioning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptimizedProgram {
    /// `mlir`, `hlo` or `hlo_with_config`: the last two are serialized protocol buffers.
    pub format: String,
    /// The program.
    pub bytes: Vec<u8>,
}

impl Executable {
    /// Takes ownership of an executable.
    ///
    /// # Safety
    ///
    /// `raw` is an executable of `plugin` that nothing else destroys.
    pub(super) unsafe fn from_raw(plugin: &Plugin, raw: *mut sys::PJRT_Executable) -> Self {
        Self { plugin: plugin.clone(), raw }
    }

    /// How many results an execution has.
    ///
    /// # Errors
    ///
    /// [`PjrtError::Call`] or [`PjrtError::Missing`].
    pub fn output_count(&self) -> Result<usize, PjrtError> {
        let mut arguments = arguments!(PJRT_Executable_NumOutputs_Args { executable: self.raw });
        // SAFETY: the executable is alive.
        unsafe { call!(self.plugin, PJRT_Executable_NumOutputs, arguments) }?;
        Ok(arguments.num_outputs)
    }

    /// The memory that the program needs on each device.
    ///
    /// # Errors
    ///
    /// [`PjrtError::Call`] or [`PjrtError::Missing`].
    pub fn memory(&self) -> Result<CompiledMemory, PjrtError> {
        let mut stats =
            arguments!(PJRT_Executable_GetCompiledMemoryStats_Args { executable: self.raw });
        // SAFETY: the executable is alive.
        unsafe { call!(self.plugin, PJRT_Executable_GetCompiledMemoryStats, stats) }?;
        let bytes = |value: i64| value.max(0) as u64;
        Ok(CompiledMemory {
            code: bytes(stats.generated_code_size_in_bytes),
            arguments: bytes(stats.argument_size_in_bytes),
            outputs: bytes(stats.output_size_in_bytes),
            aliased: bytes(stats.alias_size_in_bytes),
            temporary: bytes(stats.temp_size_in_bytes),
            peak: bytes(stats.peak_memory_in_bytes),
        })
    }

    /// The compiler's estimates for one device: `flops`, `bytes accessed` and others. A loop's
    /// body is counted once, and a custom call not at all.
    ///
    /// # Errors
    ///
    /// [`PjrtError::Call`] with [`ErrorCode::Unimplemented`](super::ErrorCode::Unimplemented)
    /// where the plugin does not estimate, as recent CPU plugins don't.
    pub fn cost(&self) -> Result<Vec<(String, Value)>, PjrtError> {
        let mut cost = arguments!(PJRT_Executable_GetCostAnalysis_Args { executable: self.raw });
        // SAFETY: the executable is alive, and the values live as long as it.
        unsafe {
            call!(self.plugin, PJRT_Executable_GetCostAnalysis, cost)?;
            Ok(options::read_values(cost.properties, cost.num_properties))
        }
    }

    /// The program after optimization and partitioning.
    ///
    /// # Errors
    ///
    /// [`PjrtError::Call`] or [`PjrtError::Missing`].
    pub fn optimized_program(&self) -> Result<OptimizedProgram, PjrtError> {
        let mut program = arguments!(PJRT_Program {});
        let mut arguments = arguments!(PJRT_Executable_OptimizedProgram_Args {
            executable: self.raw,
            program: &mut program,
        });
        // SAFETY: without a destination the call sets the size; then there is one of that size.
        unsafe {
            call!(self.plugin, PJRT_Executable_OptimizedProgram, arguments)?;
            let mut bytes = vec![0u8; program.code_size];
            program.code = bytes.as_mut_ptr().cast();
            arguments.program = &mut program;
            call!(self.plugin, PJRT_Executable_OptimizedProgram, arguments)?;
            Ok(OptimizedProgram { format: read_string(program.format, program.format_size), bytes })
        }
    }

    /// The executable as bytes, for [`Client::deserialize`].
    ///
    /// # Errors
    ///
    /// [`PjrtError::Call`] or [`PjrtError::Missing`].
    pub fn serialize(&self) -> Result<Vec<u8>, PjrtError> {
        let mut serialize = arguments!(PJRT_Executable_Serialize_Args { executable: self.raw });
        // SAFETY: the bytes live until the deleter is called, once, after the copy.
        unsafe {
            call!(self.plugin, PJRT_Executable_Serialize, serialize)?;
            let size = serialize.serialized_bytes_size;
            let bytes = match serialize.serialized_bytes.is_null() {
                true => Vec::new(),
                false => slice::from_raw_parts(serialize.serialized_bytes.cast(), size).to_vec(),
            };
            if let Some(delete) = serialize.serialized_executable_deleter {
                delete(serialize.serialized_executable);
            }
            Ok(bytes)
        }
    }
}

impl Drop for Executable {
    fn drop(&mut self) {
        let mut arguments = arguments!(PJRT_Executable_Destroy_Args { executable: self.raw });
        // SAFETY: this is the executable's only owner.
        unsafe { destroy!(self.plugin, PJRT_Executable_Destroy, arguments) };
    }
}

impl fmt::Debug for Executable {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Executable")
    }
}

/// A program loaded on devices `0..partitions` of its client, ready to execute.
#[derive(Debug)]
pub struct LoadedExecutable {
    // Declared before `loaded`, as it is dropped first.
    executable: Executable,
    outputs: usize,
    partitions: usize,
    loaded: Loaded,
}

/// The owner of the C handle, apart so that half-made executables are destroyed too.
struct Loaded {
    client: Client,
    raw: *mut sys::PJRT_LoadedExecutable,
}

// SAFETY: executables are immutable and may be used from any thread.
unsafe impl Send for Loaded {}
// SAFETY: as above.
unsafe impl Sync for Loaded {}

impl LoadedExecutable {
    /// Takes ownership of a loaded executable.
    ///
    /// # Safety
    ///
    /// `raw` is a loaded executable of `client` that nothing else destroys.
    pub(super) unsafe fn from_raw(
        client: &Client,
        raw: *mut sys::PJRT_LoadedExecutable,
        partitions: usize,
    ) -> Result<Self, PjrtError> {
        let loaded = Loaded { client: client.clone(), raw };
        let plugin = client.plugin();
        let mut get =
            arguments!(PJRT_LoadedExecutable_GetExecutable_Args { loaded_executable: raw });
        // SAFETY: the loaded executable is alive; the executable returned is ours.
        let executable = unsafe {
            call!(plugin, PJRT_LoadedExecutable_GetExecutable, get)?;
            Executable::from_raw(plugin, get.executable)
        };
        let outputs = executable.output_count()?;
        Ok(Self { executable, outputs, partitions, loaded })
    }

    /// The program itself.
    pub fn executable(&self) -> &Executable {
        &self.executable
    }

    /// How many results an execution has on each device.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// The devices that the program runs on.
    pub fn partitions(&self) -> usize {
        self.partitions
    }

    /// The client whose devices it is loaded on.
    pub fn client(&self) -> &Client {
        &self.loaded.client
    }

    pub(super) fn raw(&self) -> *mut sys::PJRT_LoadedExecutable {
        self.loaded.raw
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        let mut arguments = arguments!(PJRT_LoadedExecutable_Destroy_Args { executable: self.raw });
        // SAFETY: this is its only owner. Executions under way hold the program by themselves.
        unsafe { destroy!(self.client.plugin(), PJRT_LoadedExecutable_Destroy, arguments) };
    }
}

impl fmt::Debug for Loaded {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Loaded").field("client", &self.client).finish_non_exhaustive()
    }
}
