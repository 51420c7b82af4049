//! Proofs about a small log: of every record, from every part of the log that is enough; and none that was altered.

use std::slice::from_ref;
use std::sync::{Arc, OnceLock};
use std::task::Waker;

use super::tamper::{closed_log, first_key};
use super::{HERE, House, denied, dial, lines};
use crate::addr::Destination;
use crate::audit::frame::Kind;
use crate::audit::proof::{Disproof, Proof, Proven};
use crate::audit::prove::{ProveError, prove_growth_in, prove_in};
use crate::audit::{frame, seal, tree};
use crate::clock::{self, Id};
use crate::disk::memory::Memory;
use crate::record::Before;

#[test]
fn every_record_is_proven_to_who_holds_the_first_key() {
    let (_, store) = closed_log();
    let lines = lines(from_ref(&store));
    let key = first_key(&lines);
    let names = store.segments().unwrap();
    let (_, last) = lines.split_last().unwrap(); // the last seal is covered by the next one
    for name in names {
        // What is before the segment is not needed.
        for (seq, line) in (1..).zip(last).filter(|(seq, _)| *seq >= name.first) {
            let proof = prove_in(from_ref(&store), seq, None).unwrap();
            assert_eq!(proof.record().unwrap().as_bytes(), line);
            let Ok(Proven::Record { seq: proven, .. }) = proof.check(&key) else {
                panic!("record {seq}");
            };
            assert_eq!(proven, seq);
        }
        let after = prove_in(from_ref(&store), lines.len() as u64, None);
        assert!(matches!(after, Err(ProveError::Unsealed(_))));
        let beyond = prove_in(from_ref(&store), lines.len() as u64 + 1, None);
        assert!(matches!(beyond, Err(ProveError::Missing(_))), "{beyond:?}");
        store.disk.remove(&store.path(name)).unwrap();
        assert!(matches!(
            prove_in(from_ref(&store), name.first, None),
            Err(ProveError::Missing(_) | ProveError::Io(_))
        ));
    }
}

#[test]
fn a_proof_that_was_altered_proves_nothing() {
    let (_, store) = closed_log();
    let lines = lines(from_ref(&store));
    let key = first_key(&lines);
    let seq = lines.len() as u64 - 2;
    let proof = prove_in(from_ref(&store), seq, None).unwrap();
    let Proof::Record { chain, path, .. } = &proof else {
        panic!("{proof:?}");
    };
    assert!(chain.len() > 1 && path.len() > 2);
    let text = serde_json::to_string(&proof).unwrap();
    for at in 0..text.len() {
        let mut bytes = text.clone().into_bytes();
        bytes[at] ^= 1;
        let altered = serde_json::from_slice::<Proof>(&bytes);
        let proven = altered.is_ok_and(|proof| proof.check(&key).is_ok());
        assert!(!proven, "byte {at}");
    }
    let (_, other) = closed_log();
    let other = first_key(&super::lines(from_ref(&other)));
    assert_eq!(proof.check(&other).err(), Some(Disproof::Chain));
}

#[test]
fn every_seal_is_the_beginning_of_the_last_and_of_no_other_log() {
    let (_, store) = closed_log();
    let lines = lines(from_ref(&store));
    let key = first_key(&lines);
    let (_, other) = closed_log();
    let sealed = lines
        .iter()
        .filter(|line| frame::check(line).unwrap().kind == Kind::Seal);
    let mut count = 0;
    for note in sealed.map(|line| seal::note(line).unwrap()) {
        let proof = prove_growth_in(from_ref(&store), &note, None).unwrap();
        let proven = proof.check(&key).unwrap();
        let Proven::Growth { old, size, .. } = proven else {
            panic!("{proven:?}");
        };
        assert!(old <= size && size == lines.len() as u64 - 1);
        assert!(prove_growth_in(from_ref(&other), &note, None).is_err());
        let Proof::Growth {
            checkpoint,
            path,
            chain,
            ..
        } = proof
        else {
            panic!("no growth");
        };
        let old = note.replace("tollgate.log", "tollgate.lag");
        let forged = Proof::Growth {
            old,
            checkpoint,
            path,
            chain,
        };
        assert_eq!(forged.check(&key).err(), Some(Disproof::Old));
        count += 1;
    }
    assert!(count > 3);
}

#[test]
fn a_mark_is_the_place_and_the_leaf_of_the_line_on_disk() {
    let memory = Memory::default();
    let mut house = House::open(&memory).unwrap();
    let mut marks = Vec::new();
    for round in 0..12 {
        house.ask(); // without a mark
        house.seats[0].deny(&denied(HERE.ip()), house.now, 0);
        for _ in 0..round % 4 {
            let (id, mark) = (Id::new(), Arc::new(OnceLock::new()));
            let destination = Destination::parse("db.example.com:5432").unwrap();
            let encode = |out: &mut Vec<u8>| Before::Dial(&dial(&destination)).encode(id, 0, out);
            let now = clock::now();
            house.seats[0].begin(now, Waker::noop(), Some(&mark), encode);
            marks.push((id, mark));
        }
        house.turn();
        assert!(marks.iter().all(|(_, mark)| mark.get().is_some()));
    }
    assert!(house.store().segments().unwrap().len() > 3);
    let lines = lines(&house.stores);
    for (id, mark) in marks {
        let mark = mark.get().unwrap();
        let line = &lines[usize::try_from(mark.seq).unwrap() - 1];
        let Kind::Before(there, _) = frame::check(line).unwrap().kind else {
            panic!("{mark:?}");
        };
        assert_eq!((there, mark.leaf), (id, tree::leaf(line)));
    }
}
