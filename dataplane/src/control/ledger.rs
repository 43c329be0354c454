//! The stage ledger as control keeps it: handed to the workers, taken back, merged, told.
//!
//! A look lasts as long as its client asked for, whether the client stays or not, so that nothing
//! is left on by one that dies.

use super::api::ledger::{Look, Looks};
use super::workers::Workers;
use crate::clock;
use crate::ledger::{Ledgers, Report, Subject};
use crate::worker::{Books, Message, Retired};
use std::time::{Duration, Instant};

/// Whether ledgers are kept, and for whom.
#[derive(Debug, Default)]
pub struct Keeper {
    /// Also while nobody looks.
    is_always: bool,
    look: Option<(Look, Instant)>,
}

impl Keeper {
    /// A keeper; `is_always`: from now on.
    pub fn new(is_always: bool, workers: &mut Workers) -> Keeper {
        if is_always {
            exchange(workers, true);
        }
        Keeper { is_always, look: None }
    }

    /// Begins a look that lies there, ends one whose time is over. `name` names what entries are
    /// about.
    pub fn follow(
        &mut self,
        workers: &mut Workers,
        looks: &Looks,
        name: impl Fn(&Subject) -> String,
    ) {
        if let Some(look) = looks.take() {
            if look.seconds > 0 {
                exchange(workers, true);
            } else if !self.is_always {
                let what = "no ledger is kept; set `ledger = true` in [runtime], or look for some \
                            seconds";
                return look.tell(Err(what.into()));
            }
            let until = Instant::now() + Duration::from_secs(look.seconds.into());
            self.look = Some((look, until));
        }
        let is_over = |(_, until): &mut (Look, Instant)| *until <= Instant::now();
        if let Some((look, _)) = self.look.take_if(is_over) {
            let ledgers = exchange(workers, self.is_always);
            let now_ns = clock::now_ns();
            let report = ledgers.map(|ledgers| Report::of(&ledgers, now_ns, name));
            look.tell(report.ok_or_else(|| "no worker answered".into()));
        }
    }
}

/// Hands every worker new ledgers, or none; what those before say together, if there were any.
fn exchange(workers: &mut Workers, is_on: bool) -> Option<Ledgers> {
    let mut all: Option<Ledgers> = None;
    for worker in 0..workers.count() {
        let new = || is_on.then(|| Box::new(Ledgers::new(clock::now_ns())));
        let books = Box::new(Books { network: new(), storage: new() });
        let answer = workers.ask(worker, Message::KeepLedgers(books));
        let Some(Retired::Ledgers(old)) = answer else { continue };
        for ledgers in [old.network, old.storage].into_iter().flatten() {
            match &mut all {
                Some(all) => all.merge(&ledgers),
                None => all = Some(*ledgers),
            }
        }
    }
    all
}
