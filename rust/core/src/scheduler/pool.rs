//! Resources of workers, and what of them is in use. No more is ever given than there is.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use crate::id::{HostId, WorkerId};
use crate::resources::{Amount, Grant, Resources};

/// Whose resources they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum PoolKey {
    Worker(WorkerId),
    Host(HostId),
}

#[derive(Debug, Default)]
struct Pool {
    total: Resources,
    members: u32,
    used: BTreeMap<Box<str>, Use>,
    /// Idle members, the one that worked last first.
    idle: BTreeSet<(Reverse<u64>, WorkerId)>,
}

/// How much of one resource is in use.
#[derive(Clone, Debug, Default, PartialEq)]
struct Use {
    amount: Amount,
    /// Of each unit, where they are few.
    units: Vec<Amount>,
}

impl Pool {
    /// Takes what is needed, all of it or nothing.
    fn take(&mut self, needs: &Resources) -> Option<Box<[Grant]>> {
        let grants: Option<Box<[Grant]>> = needs.iter().map(|(name, amount)| self.offer(name, amount)).collect();
        for grant in grants.iter().flatten() {
            self.book(grant, Amount::saturating_add);
        }
        grants
    }

    fn offer(&self, name: &str, amount: Amount) -> Option<Grant> {
        let total = self.total.amount(name);
        let used = self.used.get(name).cloned().unwrap_or_default();
        if total.saturating_sub(used.amount) < amount {
            return None;
        }
        let mut units = Vec::new();
        if total.units() <= Grant::MOST_UNITS {
            pick_units(total, &used.units, amount, &mut units)?;
        }
        Some(Grant { name: name.into(), amount, units: units.into() })
    }

    fn book(&mut self, grant: &Grant, change: fn(Amount, Amount) -> Amount) {
        let used = self.used.entry(grant.name.clone()).or_default();
        used.amount = change(used.amount, grant.amount);
        for &(unit, amount) in &grant.units {
            let at = unit as usize;
            if used.units.len() <= at {
                used.units.resize(at + 1, Amount::default());
            }
            used.units[at] = change(used.units[at], amount);
        }
    }

    fn offers(&self, name: &str) -> bool {
        let used = self.used.get(name).map_or(Amount::default(), |used| used.amount);
        !self.idle.is_empty() && used < self.total.amount(name)
    }
}

/// Whole units must be unused; a fraction goes where least is left that is enough.
fn pick_units(total: Amount, used: &[Amount], amount: Amount, picked: &mut Vec<(u32, Amount)>) -> Option<()> {
    let one = Amount::whole(1);
    let left_of = |unit: u32| {
        let size = total.saturating_sub(Amount::whole(unit)).min(one);
        size.saturating_sub(used.get(unit as usize).copied().unwrap_or_default())
    };
    let mut open = amount;
    let units = total.units() as u32;
    for unit in (0..units).filter(|&unit| left_of(unit) == one) {
        if open < one {
            break;
        }
        picked.push((unit, one));
        open = open.saturating_sub(one);
    }
    if open >= one {
        return None;
    }
    if !open.is_zero() {
        let free = (0..units).filter(|&unit| picked.iter().all(|&(taken, _)| taken != unit));
        let unit = free.filter(|&unit| left_of(unit) >= open).min_by_key(|&unit| left_of(unit))?;
        picked.push((unit, open));
    }
    Some(())
}

#[derive(Debug, Default)]
pub(super) struct Pools {
    pools: BTreeMap<PoolKey, Pool>,
    /// By name: the pools that have an idle worker and something left.
    offers: BTreeMap<Box<str>, BTreeSet<PoolKey>>,
}

impl Pools {
    pub(super) fn join(&mut self, key: PoolKey, resources: &Resources) {
        let pool = self.pools.entry(key).or_default();
        if pool.members == 0 {
            pool.total = resources.clone();
        }
        pool.members += 1;
    }

    pub(super) fn leave(&mut self, key: PoolKey) {
        let Some(pool) = self.pools.get_mut(&key) else { return };
        pool.members -= 1;
        if pool.members == 0 {
            pool.idle.clear();
            self.refresh(key);
            self.pools.remove(&key);
        }
    }

    pub(super) fn set_idle(&mut self, key: PoolKey, worker: WorkerId, rested: u64, idle: bool) {
        let Some(pool) = self.pools.get_mut(&key) else { return };
        if idle {
            pool.idle.insert((Reverse(rested), worker));
        } else {
            pool.idle.remove(&(Reverse(rested), worker));
        }
        self.refresh(key);
    }

    pub(super) fn take(&mut self, key: PoolKey, needs: &Resources) -> Option<Box<[Grant]>> {
        let grants = self.pools.get_mut(&key)?.take(needs);
        self.refresh(key);
        grants
    }

    pub(super) fn give_back(&mut self, key: PoolKey, grants: &[Grant]) {
        let Some(pool) = self.pools.get_mut(&key) else { return };
        for grant in grants {
            pool.book(grant, Amount::saturating_sub);
        }
        self.refresh(key);
    }

    fn refresh(&mut self, key: PoolKey) {
        let Some(pool) = self.pools.get(&key) else { return };
        for (name, _) in pool.total.iter() {
            let offers = pool.offers(name);
            if !offers {
                if let Some(known) = self.offers.get_mut(name) {
                    known.remove(&key);
                    if known.is_empty() {
                        self.offers.remove(name);
                    }
                }
            } else if let Some(known) = self.offers.get_mut(name) {
                known.insert(key);
            } else {
                self.offers.insert(name.into(), BTreeSet::from([key]));
            }
        }
    }

    /// An idle worker that has what is needed left.
    pub(super) fn idle_with(&self, needs: &Resources) -> Option<WorkerId> {
        let (name, _) = needs.iter().next()?;
        let mut offering = self.offers.get(name)?.iter().filter_map(|key| self.pools.get(key));
        let pool = offering.find(|pool| needs.iter().all(|(name, amount)| pool.offer(name, amount).is_some()))?;
        pool.idle.first().map(|&(_, worker)| worker)
    }

    pub(super) fn has_left(&self, key: PoolKey, needs: &Resources) -> bool {
        let pool = self.pools.get(&key);
        pool.is_some_and(|pool| needs.iter().all(|(name, amount)| pool.offer(name, amount).is_some()))
    }

    /// There would be enough, were nothing in use.
    pub(super) fn could_give(&self, key: PoolKey, needs: &Resources) -> bool {
        self.pools.get(&key).is_some_and(|pool| could_give(&pool.total, needs))
    }

    /// Any pool could give it.
    pub(super) fn any_could_give(&self, needs: &Resources) -> bool {
        self.pools.values().any(|pool| could_give(&pool.total, needs))
    }

    /// What is in use is what `grants` say; says which pool is wrong.
    pub(super) fn check<'a>(&self, grants: impl Iterator<Item = (PoolKey, &'a [Grant])>) -> Result<(), String> {
        let mut used: BTreeMap<PoolKey, Pool> = BTreeMap::new();
        for (key, grants) in grants {
            for grant in grants {
                used.entry(key).or_default().book(grant, Amount::saturating_add);
            }
        }
        for (key, pool) in &self.pools {
            let found = used.remove(key).map(|pool| pool.used).unwrap_or_default();
            let same = pool.used.iter().all(|(name, known)| match found.get(name) {
                Some(found) => found.amount == known.amount,
                None => known.amount.is_zero(),
            });
            let within = found.iter().all(|(name, used)| used.amount <= pool.total.amount(name));
            let units = found.values().all(|used| used.units.iter().all(|&unit| unit <= Amount::whole(1)));
            if !(same && within && units && found.len() <= pool.used.len()) {
                return Err(format!("{key:?} counts {pool:?}, but found {found:?}"));
            }
        }
        if used.is_empty() {
            Ok(())
        } else {
            Err(format!("grants of no pool: {used:?}"))
        }
    }
}

pub(super) fn could_give(total: &Resources, needs: &Resources) -> bool {
    let empty = Pool { total: total.clone(), ..Pool::default() };
    needs.iter().all(|(name, amount)| empty.offer(name, amount).is_some())
}
