//! Runs bodies on blocks and clusters with an image in shared memory.

use cuda_emulator::{Arguments, Launch, Memory, Options, Outcome, Program, Schedule, launch};

/// A body for the threads of a grid.
pub(crate) struct Body<'a> {
    pub(crate) text: &'a str,
    pub(crate) grid: u32,
    pub(crate) cluster: u32,
    pub(crate) threads: u32,
    /// Bytes of `room`, in shared memory, and what is copied there first.
    pub(crate) room: usize,
    pub(crate) image: &'a [u8],
    /// Words that each thread stores at `d1`, its place in `out`.
    pub(crate) words: usize,
    pub(crate) perturb: Option<u32>,
}

impl Default for Body<'_> {
    fn default() -> Self {
        Self {
            text: "",
            grid: 1,
            cluster: 1,
            threads: 32,
            room: 4096,
            image: &[],
            words: 1,
            perturb: None,
        }
    }
}

/// What the parameter `more` holds besides.
pub(crate) type More<'a> = &'a dyn Fn(&mut Memory, Arguments) -> Arguments;

pub(crate) fn nothing(_: &mut Memory, arguments: Arguments) -> Arguments {
    arguments
}

impl Body<'_> {
    /// Runs with all checks. `parameters` declares what `more` adds to `out` and `image`.
    pub(crate) fn run(
        &self,
        parameters: &str,
        more: More<'_>,
        schedule: Schedule,
    ) -> (Vec<u32>, Outcome) {
        let copied = self.image.len() / 4;
        let text = format!(
            ".version 8.8\n.target sm_90a\n.address_size 64\n
             .extern .shared .align 1024 .b8 room[];
             .visible .entry k(.param .u64 out, .param .u64 image{parameters}) {{
             .reg .pred p<6>; .reg .b16 h<8>; .reg .b32 r<160>; .reg .b64 d<16>;
             .shared .align 8 .b64 barrier; .shared .align 8 .b64 other;
             mov.u32 r150, %tid.x; mov.u32 r151, %ctaid.x; mov.u32 r152, %ntid.x;
             mad.lo.u32 r153, r151, r152, r150; mul.wide.u32 d1, r153, {bytes};
             ld.param.u64 d2, [out]; add.s64 d1, d1, d2;
             ld.param.u64 d3, [image]; mov.u32 r154, r150;
             copy: setp.ge.u32 p0, r154, {copied}; @p0 bra copied;
             mul.wide.u32 d4, r154, 4; add.s64 d4, d4, d3; ld.global.u32 r155, [d4];
             mov.u32 r156, room; shl.b32 r157, r154, 2; add.u32 r156, r156, r157;
             st.shared.u32 [r156], r155; add.u32 r154, r154, r152; bra copy;
             copied: fence.proxy.async; bar.sync 0;
             {body}
             ret; }}",
            bytes = self.words * 4,
            body = self.text,
        );
        let mut memory = Memory::default();
        crate::coverage::note(&text);
        let program =
            Program::load(&text, &mut memory).unwrap_or_else(|e| panic!("{}: {e}", self.text));
        let kernel = program.kernel("k").unwrap_or_else(|e| panic!("{}: {e}", self.text));
        let count = (self.grid * self.threads) as usize * self.words;
        let out = memory.upload(&vec![0u32; count]).expect("memory");
        let image = memory.upload(self.image).expect("memory");
        let arguments = more(&mut memory, Arguments::new().with(out).with(image));
        let shape = Launch {
            grid: [self.grid, 1, 1],
            block: [self.threads, 1, 1],
            dynamic_shared: self.room as u32,
            cluster: Some([self.cluster, 1, 1]),
        };
        let options = Options {
            schedule,
            perturb: self.perturb,
            instruction_limit: 1 << 20,
            ..Options::default()
        };
        let outcome =
            launch(&kernel, &memory, &shape, arguments.bytes(), &options).expect("a launch");
        (memory.download(out, count).expect("memory"), outcome)
    }

    /// Runs in two schedules, and wants no errors and the same words.
    pub(crate) fn words_with(&self, parameters: &str, more: More<'_>) -> Vec<u32> {
        let run = |schedule| {
            let (words, outcome) = self.run(parameters, more, schedule);
            assert_eq!(outcome.errors().count(), 0, "{}: {:#?}", self.text, outcome.reports);
            words
        };
        let words = run(Schedule::InOrder);
        assert_eq!(run(Schedule::Random(3)), words, "{}", self.text);
        words
    }

    pub(crate) fn words(&self) -> Vec<u32> {
        self.words_with("", &nothing)
    }

    /// What is wrong in the order of the grid, and in a random one.
    pub(crate) fn problems(&self) -> String {
        let mut all = String::new();
        for schedule in [Schedule::InOrder, Schedule::Random(5)] {
            for report in self.run("", &nothing, schedule).1.errors() {
                all += &format!("{}\n", report.problem);
            }
        }
        all
    }
}
