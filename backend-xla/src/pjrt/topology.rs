//! Topologies: hardware that a program is compiled for without being there.

use std::fmt;

use super::{
    CompileOptions, Executable, PjrtError, Plugin, Value,
    client::Module,
    options::{named_values, read_values},
    plugin::{arguments, call, destroy, read_string},
    sys,
};

/// What a plugin says of a device, present or not.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct DeviceDescription {
    /// The device's number among all devices of the platform.
    pub id: i32,
    /// The kind, such as `TPU v6 lite` or `cpu`.
    pub kind: String,
    /// The plugin's attributes, such as coordinates.
    pub attributes: Vec<(String, Value)>,
}

/// A set of devices to compile for ahead of time, by name: `v6e:2x2` is four TPU v6e chips.
pub struct Topology {
    plugin: Plugin,
    raw: *mut sys::PJRT_TopologyDescription,
}

// SAFETY: topologies are immutable and may be used from any thread.
unsafe impl Send for Topology {}
// SAFETY: as above.
unsafe impl Sync for Topology {}

impl Topology {
    /// Describes the topology `name`, with the plugin's own options.
    ///
    /// # Errors
    ///
    /// [`PjrtError::Call`] for a name or option that the plugin does not know.
    pub fn new(plugin: &Plugin, name: &str, options: &[(&str, Value)]) -> Result<Self, PjrtError> {
        let named = named_values(options);
        let mut create = arguments!(PJRT_TopologyDescription_Create_Args {
            topology_name: name.as_ptr().cast(),
            topology_name_size: name.len(),
            create_options: named.as_ptr(),
            num_options: named.len(),
        });
        // SAFETY: name and options outlive the call; the topology returned is ours.
        unsafe { call!(plugin, PJRT_TopologyDescription_Create, create) }?;
        Ok(Self { plugin: plugin.clone(), raw: create.topology })
    }

    /// The platform's name and version.
    ///
    /// # Errors
    ///
    /// [`PjrtError::Call`] or [`PjrtError::Missing`].
    pub fn platform(&self) -> Result<(String, String), PjrtError> {
        let mut name =
            arguments!(PJRT_TopologyDescription_PlatformName_Args { topology: self.raw });
        let mut version =
            arguments!(PJRT_TopologyDescription_PlatformVersion_Args { topology: self.raw });
        // SAFETY: the topology is alive, and the strings live as long as it.
        unsafe {
            call!(self.plugin, PJRT_TopologyDescription_PlatformName, name)?;
            call!(self.plugin, PJRT_TopologyDescription_PlatformVersion, version)?;
            Ok((
                read_string(name.platform_name, name.platform_name_size),
                read_string(version.platform_version, version.platform_version_size),
            ))
        }
    }

    /// The devices of the topology.
    ///
    /// # Errors
    ///
    /// [`PjrtError::Call`] or [`PjrtError::Missing`].
    pub fn devices(&self) -> Result<Vec<DeviceDescription>, PjrtError> {
        let mut list =
            arguments!(PJRT_TopologyDescription_GetDeviceDescriptions_Args { topology: self.raw });
        // SAFETY: the topology is alive, and the list lives as long as it.
        unsafe {
            call!(self.plugin, PJRT_TopologyDescription_GetDeviceDescriptions, list)?;
            (0..list.num_descriptions)
                .map(|index| describe(&self.plugin, *list.descriptions.add(index)))
                .collect()
        }
    }

    /// Compiles a StableHLO module, in its text form, for this topology. No device is needed.
    ///
    /// A module that is wrong in certain ways (replica groups that name devices which don't
    /// exist) ends the process inside the plugin: compile what is not trusted in a child process.
    ///
    /// # Errors
    ///
    /// [`PjrtError::Call`] for a program that does not parse, compile or fit.
    pub fn compile(&self, text: &str, options: &CompileOptions) -> Result<Executable, PjrtError> {
        let proto = options.to_proto();
        let module = Module::new(text);
        let program = module.as_raw();
        let mut compile = arguments!(PJRT_Compile_Args {
            topology: self.raw,
            program: &program,
            compile_options: proto.as_ptr().cast(),
            compile_options_size: proto.len(),
        });
        // SAFETY: program and options outlive the call; the executable returned is ours.
        unsafe {
            call!(self.plugin, PJRT_Compile, compile)?;
            Ok(Executable::from_raw(&self.plugin, compile.executable))
        }
    }
}

/// Reads the description of a device.
///
/// # Safety
///
/// `raw` is a device description of `plugin` that is alive.
pub(super) unsafe fn describe(
    plugin: &Plugin,
    raw: *mut sys::PJRT_DeviceDescription,
) -> Result<DeviceDescription, PjrtError> {
    let mut id = arguments!(PJRT_DeviceDescription_Id_Args { device_description: raw });
    let mut kind = arguments!(PJRT_DeviceDescription_Kind_Args { device_description: raw });
    let mut attributes =
        arguments!(PJRT_DeviceDescription_Attributes_Args { device_description: raw });
    // SAFETY: the description is alive, and what it returns lives as long as it.
    unsafe {
        call!(plugin, PJRT_DeviceDescription_Id, id)?;
        call!(plugin, PJRT_DeviceDescription_Kind, kind)?;
        call!(plugin, PJRT_DeviceDescription_Attributes, attributes)?;
        Ok(DeviceDescription {
            id: id.id,
            kind: read_string(kind.device_kind, kind.device_kind_size),
            attributes: read_values(attributes.attributes, attributes.num_attributes),
        })
    }
}

impl Drop for Topology {
    fn drop(&mut self) {
        let mut arguments =
            arguments!(PJRT_TopologyDescription_Destroy_Args { topology: self.raw });
        // SAFETY: this is the topology's only owner.
        unsafe { destroy!(self.plugin, PJRT_TopologyDescription_Destroy, arguments) };
    }
}

impl fmt::Debug for Topology {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Topology").field("plugin", &self.plugin).finish_non_exhaustive()
    }
}
