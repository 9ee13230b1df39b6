//! Attention over a paged cache, in the plainest way.

use super::{Numbers, widen};

/// A batch of sequences whose keys and values lie in pages.
pub struct Batch {
    pub head: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub page: usize,
    pub width: usize,
    /// Tokens of each sequence in the cache.
    pub lengths: Vec<i32>,
    /// First new token of each sequence in the batch, and one more.
    pub starts: Vec<i32>,
    pub table: Vec<i32>,
    pub keys: Vec<u16>,
    pub values: Vec<u16>,
    pub queries: Vec<u16>,
    pub scale: f32,
    pub softcap: f32,
    pub window: i32,
}

impl Batch {
    /// `fresh` of the `lengths` tokens of each sequence are new.
    pub fn new(head: usize, heads: usize, kv_heads: usize, lengths: &[i32], fresh: &[i32]) -> Self {
        let mut numbers = Numbers::new(7);
        let page = 16;
        let pages_of = |length: i32| (length as usize).div_ceil(page);
        let width = lengths.iter().map(|length| pages_of(*length)).max().unwrap_or(1);
        // Pages are dealt out in no order.
        let total: usize = lengths.iter().map(|length| pages_of(*length)).sum();
        let mut free: Vec<i32> = (0..total as i32).collect();
        for index in (1..total).rev() {
            free.swap(index, numbers.next() as usize % (index + 1));
        }
        let mut table = vec![-1; width * lengths.len()];
        for (sequence, length) in lengths.iter().enumerate() {
            for entry in 0..pages_of(*length) {
                table[sequence * width + entry] = free.pop().expect("a page for each");
            }
        }
        let mut starts = vec![0];
        for count in fresh {
            starts.push(starts[starts.len() - 1] + count);
        }
        let tokens = starts[starts.len() - 1] as usize;
        let cached = total * page * kv_heads * head;
        Self {
            head,
            heads,
            kv_heads,
            page,
            width,
            lengths: lengths.to_vec(),
            starts,
            table,
            keys: numbers.halves(cached),
            values: numbers.halves(cached),
            queries: numbers.halves(tokens * heads * head),
            scale: 1.0 / (head as f32).sqrt(),
            softcap: 0.0,
            window: 0,
        }
    }

    /// What the kernels should give: [token][head][dimension].
    pub fn expected(&self) -> Vec<f64> {
        let mut out = Vec::new();
        for (sequence, length) in self.lengths.iter().enumerate() {
            let fresh = self.starts[sequence + 1] - self.starts[sequence];
            for token in 0..fresh {
                let position = length - fresh + token;
                for head in 0..self.heads {
                    let row = (self.starts[sequence] + token) as usize;
                    out.extend(self.row(sequence, row, position, head));
                }
            }
        }
        out
    }

    fn row(&self, sequence: usize, row: usize, position: i32, head: usize) -> Vec<f64> {
        let kv_head = head / (self.heads / self.kv_heads);
        let first = if self.window > 0 { (position - self.window + 1).max(0) } else { 0 };
        let at = |token: i32| {
            let token = token as usize;
            let page = self.table[sequence * self.width + token / self.page] as usize;
            ((page * self.page + token % self.page) * self.kv_heads + kv_head) * self.head
        };
        let query = (row * self.heads + head) * self.head;
        let mut scores = Vec::new();
        for token in first..=position {
            let products = (0..self.head)
                .map(|i| widen(self.queries[query + i]) * widen(self.keys[at(token) + i]));
            let mut score = products.sum::<f64>() * f64::from(self.scale);
            if self.softcap > 0.0 {
                let cap = f64::from(self.softcap);
                score = cap * (score / cap).tanh();
            }
            scores.push(score);
        }
        let largest = scores.iter().copied().fold(f64::MIN, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
        let total: f64 = weights.iter().sum();
        (0..self.head)
            .map(|i| {
                let sum: f64 = (first..=position)
                    .zip(&weights)
                    .map(|(token, weight)| weight * widen(self.values[at(token) + i]))
                    .sum();
                // Nothing to attend to gives zeros.
                sum / total.max(f64::MIN_POSITIVE)
            })
            .collect()
    }
}
