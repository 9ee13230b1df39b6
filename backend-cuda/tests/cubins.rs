//! Machine code of the kernels for each architecture, as ptxas makes it: registers, spills, shared memory, occupancy, and
//! the instructions that the kernels are written for.

mod support;

use std::fmt::Write;
use std::sync::Mutex;

use backend_api::weights::Format;
use backend_cuda::{Kernel, Variant, append_shared_bytes};
use cuda_emulator::hardware::{Demand, GPUS, occupancy};
use cuda_emulator::ptxas::{Ptxas, Resources};
use support::compiled;

/// What the pinned NVRTC and ptxas target, of what the kernels are for.
const ARCHITECTURES: [&str; 6] = ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120"];
/// Widths of heads up to which nothing may spill.
const WITHOUT_SPILLS: u32 = 128;

/// A kernel as it is compiled, and its launch.
#[derive(Clone, Copy, Debug)]
struct Build {
    kernel: Kernel,
    variant: Variant,
    threads: u32,
}

impl Build {
    fn name(&self, function: &str) -> String {
        let Variant { head, weight, .. } = self.variant;
        match self.kernel {
            Kernel::AttentionDecode
            | Kernel::AttentionMerge
            | Kernel::AttentionAppend
            | Kernel::RopeAndStore => format!("{function}, heads of {head}"),
            Kernel::BlocksVector | Kernel::BlocksTile | Kernel::BlocksEmbed => {
                let weight =
                    if weight == Format::BF16 { "16 bits".to_owned() } else { weight.to_string() };
                format!("{function}, {weight}")
            }
            _ => function.to_owned(),
        }
    }

    fn dynamic_shared(&self) -> u32 {
        if self.kernel == Kernel::AttentionAppend { append_shared_bytes(&self.variant) } else { 0 }
    }

    fn threads_of(&self, function: &str) -> u32 {
        match function {
            "route" | "sort_choices" => 32,
            "list_tiles" => 1024,
            _ => self.threads,
        }
    }
}

/// Every kernel: attention for each width of heads, products for each format.
fn builds() -> Vec<Build> {
    let plain = Variant::new(64, 1);
    let mut all = Vec::new();
    let mut add = |kernel, variant, threads| all.push(Build { kernel, variant, threads });
    for (kernel, threads) in [
        (Kernel::RmsNorm, 256),
        (Kernel::GatedActivation, 256),
        (Kernel::Embed, 128),
        (Kernel::Sample, 512),
        (Kernel::Linear, 128),
        (Kernel::Elementwise, 256),
        (Kernel::Experts, 256),
    ] {
        add(kernel, plain, threads);
    }
    for head in [64, 80, 96, 128, 256, 512] {
        let variant = Variant::new(head, 4);
        add(Kernel::RopeAndStore, variant, 128);
        add(Kernel::AttentionDecode, variant, 128);
        add(Kernel::AttentionMerge, variant, 32);
        add(Kernel::AttentionAppend, variant, 128);
    }
    for weight in Format::ALL {
        if weight.is_quantized() || weight == Format::BF16 {
            let variant = Variant { weight, ..plain };
            for kernel in [Kernel::BlocksVector, Kernel::BlocksTile, Kernel::BlocksEmbed] {
                add(kernel, variant, 128);
            }
        }
    }
    all
}

/// The formats whose rows the page has; the others are much the same.
const WRITTEN: [Format; 10] = [
    Format::BF16,
    Format::Q4_0,
    Format::Q4_1,
    Format::Q8_0,
    Format::Q4_K,
    Format::Q5_K,
    Format::Q6_K,
    Format::MXFP4,
    Format::F8_E4M3,
    Format::U4,
];

/// Does work for each item on two threads, and gives the results in order.
fn parallel<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = Mutex::new(0);
    let results = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let index = {
                        let mut next = next.lock().expect("no panic");
                        *next += 1;
                        *next - 1
                    };
                    let Some(item) = items.get(index) else { return };
                    let result = work(item);
                    results.lock().expect("no panic").push((index, result));
                }
            });
        }
    });
    let mut results = results.into_inner().expect("no panic");
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

#[test]
fn every_kernel_assembles_for_each_architecture_and_spills_nothing() {
    let ptxas = Ptxas::find().expect("ptxas can be fetched");
    let found = parallel(&builds(), |build| {
        let ptx = compiled(build.kernel, &build.variant);
        let resources = ARCHITECTURES.map(|architecture| {
            ptxas.resources(&ptx, architecture).unwrap_or_else(|error| panic!("{build:?}: {error}"))
        });
        (*build, resources)
    });
    let mut table = String::from(
        "| kernel | registers sm_80, sm_90a | shared memory | spills sm_80, sm_90a | blocks on A100, H100 |\n\
         | --- | --- | --- | --- | --- |\n",
    );
    for (build, resources) in &found {
        for function in build.kernel.functions() {
            let of = |at: usize| -> Resources { resources[at][function] };
            for (at, architecture) in ARCHITECTURES.iter().enumerate() {
                let spilled = of(at).spill_stores + of(at).spill_loads;
                if build.variant.head <= WITHOUT_SPILLS {
                    assert_eq!(spilled, 0, "{} for {architecture}", build.name(function));
                }
            }
            if !WRITTEN.contains(&build.variant.weight) {
                continue;
            }
            let (old, new) = (of(0), of(3));
            let shared = old.shared + build.dynamic_shared();
            let blocks = |gpu: usize, resources: Resources| {
                let demand = Demand {
                    threads: build.threads_of(function),
                    registers: Some(resources.registers),
                    shared: resources.shared + build.dynamic_shared(),
                };
                occupancy(&GPUS[gpu].limits(), &demand).blocks
            };
            writeln!(
                table,
                "| {} | {}, {} | {shared} | {}, {} | {}, {} |",
                build.name(function),
                old.registers,
                new.registers,
                old.spill_stores,
                new.spill_stores,
                blocks(0, old),
                blocks(1, new),
            )
            .expect("memory");
        }
    }
    println!("{table}");
    let page = include_str!("../../docs/cuda-kernels.md");
    assert!(
        page.contains(table.trim_end()),
        "docs/cuda-kernels.md has another table than this:\n{table}"
    );
}

/// Whether the machine code of a kernel has each instruction.
fn has(kernel: Kernel, variant: &Variant, architecture: &str, instructions: &[&str]) {
    let ptxas = Ptxas::find().expect("ptxas can be fetched");
    let code = ptxas.machine_code(&compiled(kernel, variant), architecture);
    let code = code.unwrap_or_else(|error| panic!("{error}"));
    for instruction in instructions {
        let count = code.matches(instruction).count();
        println!("{} for {architecture}: {count} {instruction}", kernel.name());
        assert!(count > 0, "{} for {architecture} has no {instruction}", kernel.name());
    }
}

#[test]
fn products_use_tensor_cores_matrix_loads_and_asynchronous_copies() {
    for architecture in ["sm_80", "sm_90a"] {
        let all = ["HMMA.16816.F32.BF16", "LDSM.16.M88.4", "LDGSTS"];
        let plain = Variant::new(128, 4);
        has(Kernel::Linear, &plain, architecture, &all);
        let blocks = Variant { weight: Format::Q4_K, ..plain };
        has(Kernel::BlocksTile, &blocks, architecture, &all);
        has(Kernel::AttentionAppend, &plain, architecture, &all);
        has(Kernel::AttentionAppend, &plain, architecture, &["LDSM.16.MT88.4"]);
        // Few rows: wide loads, and products in f32.
        has(Kernel::BlocksVector, &blocks, architecture, &["LDG.E.128", "FFMA"]);
        let half = Variant { half: true, ..blocks };
        has(Kernel::BlocksTile, &half, architecture, &["HMMA.16816.F32 "]);
    }
}
