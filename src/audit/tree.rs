//! One Merkle tree over the whole log, as RFC 6962 draws it: what a seal signs, and what proves one record to others.
//!
//! ```text
//! leaf n-1   SHA-256(0x00 || record seq n, exactly as stored, without its line feed)
//! node       SHA-256(0x01 || left || right)
//! ```
//!
//! Whoever writes or reads the log front to back keeps only the right [`Edge`]: one hash for each perfect subtree, 64
//! at most. A proof is a list of hashes of subtrees; [`Gather`] makes them from an edge and the leaves behind it, so
//! that everything before may be gone. Nothing here does I/O or knows what a record says.

use aws_lc_rs::digest::{Context, SHA256};

/// SHA-256.
pub(super) type Hash = [u8; HASH_BYTES];

pub(super) const HASH_BYTES: usize = 32;

/// The right edge of the tree: the hashes of its perfect subtrees, the largest first.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Edge {
    size: u64,
    hashes: Vec<Hash>,
}

/// Leaves from `begin` up to, but not including, `end`, which are one subtree.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Span {
    begin: u64,
    end: u64,
}

/// Finds the hashes of some spans while leaves go by in order.
pub(super) struct Gather {
    spans: Vec<(Span, Edge)>,
}

/// The leaf of a line, given without its line feed.
pub(super) fn leaf(line: &[u8]) -> Hash {
    digest(&[&[0], line])
}

impl Edge {
    /// An edge that was written down; `None` if there is no tree with so many leaves and this edge.
    pub(super) fn new(size: u64, hashes: Vec<Hash>) -> Option<Self> {
        (size.count_ones() as usize == hashes.len()).then_some(Self { size, hashes })
    }

    /// Leaves so far.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// The hashes, the largest subtree first.
    pub(super) fn hashes(&self) -> &[Hash] {
        &self.hashes
    }

    /// Appends a leaf.
    pub(super) fn push(&mut self, leaf: Hash) {
        let mut hash = leaf;
        for _ in 0..self.size.trailing_ones() {
            if let Some(left) = self.hashes.pop() {
                hash = node(&left, &hash);
            }
        }
        self.hashes.push(hash);
        self.size += 1;
    }

    /// The hash of the whole tree.
    pub(super) fn root(&self) -> Hash {
        let mut hashes = self.hashes.iter().rev();
        match hashes.next() {
            None => digest(&[]),
            Some(last) => hashes.fold(*last, |right, left| node(left, &right)),
        }
    }

    /// What is known of `span` here: all of it, its beginning, or nothing.
    fn part(&self, span: Span) -> Option<Self> {
        if self.size <= span.begin {
            return Some(Self::default());
        }
        let end = self.size.min(span.end);
        let place = |leaf| (0..=self.hashes.len()).find(|at| self.begin(*at) == leaf);
        let hashes = self.hashes.get(place(span.begin)?..place(end)?)?;
        Self::new(end - span.begin, hashes.to_vec())
    }

    /// The first leaf under hash `at`; behind the last hash, the size.
    fn begin(&self, at: usize) -> u64 {
        let mut size = self.size;
        for _ in at..self.hashes.len() {
            size &= size.wrapping_sub(1);
        }
        size
    }
}

/// The subtrees beside the way from leaf `index` to the root of a tree of `size` leaves: RFC 6962, 2.1.1.
pub(super) fn inclusion(index: u64, size: u64) -> Vec<Span> {
    let (mut begin, mut end) = (0, size);
    let mut spans = Vec::new();
    while end - begin > 1 {
        let middle = begin + split(end - begin);
        if index < middle {
            spans.push(Span { begin: middle, end });
            end = middle;
        } else {
            spans.push(Span { begin, end: middle });
            begin = middle;
        }
    }
    spans.reverse();
    spans
}

/// The subtrees that show that the tree of `old` leaves is the beginning of the tree of `size`: RFC 6962, 2.1.2.
pub(super) fn consistency(old: u64, size: u64) -> Vec<Span> {
    let (mut begin, mut end) = (0, size);
    let mut spans = Vec::new();
    if old == 0 {
        return spans;
    }
    while end != old {
        let middle = begin + split(end - begin);
        if old <= middle {
            spans.push(Span { begin: middle, end });
            end = middle;
        } else {
            spans.push(Span { begin, end: middle });
            begin = middle;
        }
    }
    if begin > 0 {
        spans.push(Span { begin, end });
    }
    spans.reverse();
    spans
}

/// The root that `path` leads to from leaf `index` of `size`; `None` if the path is none of such a tree.
pub(super) fn root_of(leaf: Hash, index: u64, size: u64, path: &[Hash]) -> Option<Hash> {
    let spans = inclusion(index, size);
    if index >= size || spans.len() != path.len() {
        return None;
    }
    let step = |hash: Hash, (span, beside): (&Span, &Hash)| {
        if span.begin > index {
            node(&hash, beside)
        } else {
            node(beside, &hash)
        }
    };
    Some(spans.iter().zip(path).fold(leaf, step))
}

/// Whether `path` shows that the tree with `old` leaves and root `old_root` is the beginning of the one with `size`.
pub(super) fn is_consistent(
    (old, old_root): (u64, Hash),
    (size, root): (u64, Hash),
    path: &[Hash],
) -> bool {
    if old == 0 || old > size {
        return old == 0 && path.is_empty();
    }
    let spans = consistency(old, size);
    if spans.len() != path.len() {
        return false;
    }
    let mut steps = spans.iter().zip(path);
    // What both trees begin with: the old tree itself if it is perfect, otherwise the smallest subtree at its end.
    let first = match spans.first() {
        Some(span) if span.end == old => steps.next().map(|(_, hash)| *hash),
        _ => Some(old_root),
    };
    let Some(first) = first else { return false };
    let (mut was, mut is) = (first, first);
    for (span, beside) in steps {
        if span.begin >= old {
            is = node(&is, beside);
        } else {
            (was, is) = (node(beside, &was), node(beside, &is));
        }
    }
    was == old_root && is == root
}

impl Gather {
    /// Looks for the hashes of `spans`, going on from `edge`. `None` if one of them has leaves before the edge that it
    /// does not tell of.
    pub(super) fn new(spans: Vec<Span>, edge: &Edge) -> Option<Self> {
        let known = |span| Some((span, edge.part(span)?));
        let spans = spans.into_iter().map(known).collect::<Option<_>>()?;
        Some(Self { spans })
    }

    /// Takes the leaf number `index`, the next one.
    pub(super) fn push(&mut self, index: u64, leaf: Hash) {
        let within = |span: &Span| (span.begin..span.end).contains(&index);
        if let Some((_, edge)) = self.spans.iter_mut().find(|(span, _)| within(span)) {
            edge.push(leaf);
        }
    }

    /// The hashes, in the order of the spans; `None` if leaves are missing.
    pub(super) fn finish(self) -> Option<Vec<Hash>> {
        let whole =
            |(span, edge): (Span, Edge)| (edge.size == span.end - span.begin).then(|| edge.root());
        self.spans.into_iter().map(whole).collect()
    }
}

/// The largest power of two below `size`, which is at least 2.
fn split(size: u64) -> u64 {
    1 << (63 - (size - 1).leading_zeros())
}

fn node(left: &Hash, right: &Hash) -> Hash {
    digest(&[&[1], left, right])
}

fn digest(parts: &[&[u8]]) -> Hash {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(part);
    }
    let mut hash = [0; HASH_BYTES];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 6962, 2.1, to the letter.
    fn slow_root(leaves: &[Hash]) -> Hash {
        match leaves {
            [] => digest(&[]),
            [one] => *one,
            many => {
                let mut k = 1;
                while k * 2 < many.len() {
                    k *= 2;
                }
                node(&slow_root(&many[..k]), &slow_root(&many[k..]))
            }
        }
    }

    fn leaves(count: usize) -> Vec<Hash> {
        (0..count).map(|at| leaf(&at.to_be_bytes())).collect()
    }

    fn edge(leaves: &[Hash]) -> Edge {
        let mut edge = Edge::default();
        leaves.iter().for_each(|leaf| edge.push(*leaf));
        edge
    }

    /// The hashes of spans, knowing only the edge at `from` and what comes behind it.
    fn gather(spans: Vec<Span>, leaves: &[Hash], from: usize) -> Option<Vec<Hash>> {
        let mut gather = Gather::new(spans, &edge(&leaves[..from]))?;
        for (at, leaf) in leaves.iter().enumerate().skip(from) {
            gather.push(at as u64, *leaf);
        }
        gather.finish()
    }

    fn hex(hash: &[u8]) -> String {
        hash.iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn known_trees_have_their_known_roots() {
        let inputs: [&[u8]; 8] = [
            b"",
            b"\0",
            b"\x10",
            b" !",
            b"01",
            b"@ABC",
            b"PQRSTUVW",
            b"`abcdefghijklmno",
        ];
        let roots = [
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
            "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
            "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
            "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
            "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
        ];
        let mut edge = Edge::default();
        assert_eq!(hex(&edge.root()), roots[0]);
        for (input, root) in inputs.iter().zip(&roots[1..]) {
            edge.push(leaf(input));
            assert_eq!(hex(&edge.root()), *root, "{}", edge.size());
        }
        let hashes: Vec<_> = inputs.iter().map(|input| leaf(input)).collect();
        let path = gather(inclusion(0, 8), &hashes, 0).unwrap();
        let path: Vec<_> = path.iter().map(|hash| hex(hash)).collect();
        assert_eq!(
            path,
            [
                "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
                "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
            ]
        );
    }

    #[test]
    fn every_leaf_of_every_small_tree_is_proven_and_nothing_else() {
        let all = leaves(40);
        for size in 1..=all.len() {
            let (hashes, root) = (&all[..size], slow_root(&all[..size]));
            assert_eq!(edge(hashes).root(), root);
            for index in 0..size as u64 {
                let leaf = all[index as usize];
                let path = gather(inclusion(index, size as u64), hashes, 0).unwrap();
                let proves = |leaf, index, size, path: &[Hash]| {
                    root_of(leaf, index, size, path) == Some(root)
                };
                assert!(proves(leaf, index, size as u64, &path), "{index} of {size}");
                for other in (0..size as u64).filter(|other| *other != index) {
                    assert!(!proves(leaf, other, size as u64, &path));
                }
                assert!(!proves([7; 32], index, size as u64, &path));
                for at in 0..path.len() {
                    let mut bad = path.clone();
                    bad[at][31] ^= 1;
                    assert!(!proves(leaf, index, size as u64, &bad));
                }
                let mut long = path.clone();
                long.push(leaf);
                assert!(!proves(leaf, index, size as u64, &long));
                assert_eq!(root_of(leaf, size as u64, size as u64, &path), None);
            }
        }
    }

    #[test]
    fn every_small_tree_is_the_beginning_of_its_successors_and_of_no_other() {
        let all = leaves(40);
        for size in 1..=all.len() {
            let root = slow_root(&all[..size]);
            for old in 1..=size {
                let was = slow_root(&all[..old]);
                let spans = consistency(old as u64, size as u64);
                let path = gather(spans, &all[..size], 0).unwrap();
                let holds = |was, root, path: &[Hash]| {
                    is_consistent((old as u64, was), (size as u64, root), path)
                };
                assert!(holds(was, root, &path), "{old} of {size}");
                assert!(!holds([7; 32], root, &path), "{old} of {size}");
                assert!(!holds(was, [7; 32], &path), "{old} of {size}");
                for at in 0..path.len() {
                    let mut bad = path.clone();
                    bad[at][0] ^= 1;
                    assert!(!holds(was, root, &bad), "{old} of {size}");
                }
                assert!(!holds(was, root, &[&path[..], &[was]].concat()));
            }
        }
        assert!(!is_consistent((3, [0; 32]), (2, [0; 32]), &[]));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        /// What an edge at any place and the leaves behind it give is what the whole tree gives.
        #[test]
        fn nothing_before_the_edge_is_needed(size in 1..700_usize, index in 0..700_usize, from in 0..700_usize) {
            let all = leaves(size);
            let (index, from) = (index % size, from % size);
            let spans = inclusion(index as u64, size as u64);
            if from <= index {
                let path = gather(spans.clone(), &all, from).unwrap();
                prop_assert_eq!(root_of(all[index], index as u64, size as u64, &path), Some(slow_root(&all)));
                prop_assert_eq!(&path, &gather(spans, &all, 0).unwrap());
            } else if let Some(path) = gather(spans, &all, from) {
                prop_assert_eq!(root_of(all[index], index as u64, size as u64, &path), Some(slow_root(&all)));
            }
            if from > 0 {
                let spans = consistency(from as u64, size as u64);
                if let Some(path) = gather(spans, &all, from) {
                    let was = (from as u64, slow_root(&all[..from]));
                    prop_assert!(is_consistent(was, (size as u64, slow_root(&all)), &path));
                }
            }
        }

        #[test]
        fn an_edge_that_was_written_down_goes_on(size in 0..300_usize, more in 0..50_usize) {
            let all = leaves(size + more);
            let written = edge(&all[..size]);
            let mut read = Edge::new(written.size(), written.hashes().to_vec()).unwrap();
            prop_assert!(Edge::new(size as u64 + 1, written.hashes().to_vec()).is_none() || size % 2 == 1);
            all[size..].iter().for_each(|leaf| read.push(*leaf));
            prop_assert_eq!(read.root(), slow_root(&all));
        }
    }
}
