//! The order of the requests that wait for a place at an app's copies.
//!
//! Owns that order: clients take turns, and so do the sessions of one client, so that the many
//! requests of one client wait for each other and others do not wait for them (fair queuing: Nagle,
//! "On packet switches with infinite storage", RFC 970, 1985). One request is *called* at a time:
//! it alone looks for a place, and the next is called once it has one. Refuses to know what a place
//! is.
//!
//! A client of which nothing waited comes ahead of those that have had turns (as new flows do in
//! FQ-CoDel, RFC 8290 section 4.2), even of the one that is called, if its client has more that wait. So
//! a client with one request waits for a place to become free, and not for a round of the others. At
//! most every other turn is one of theirs, and no request is overtaken twice.
//!
//! The one that is called leaves to ask for a place elsewhere, and another is called meanwhile. If it
//! is turned away there, it is called again, and the other waits on before all. Of several that come
//! back, the one that was called first is: whoever asks elsewhere loses nothing by that.
//!
//! If the queue is full, a request of the client with most of them gives way to a client with
//! clearly fewer: nobody can fill the queue against others. A client that may have no more places for
//! now is *held*: its requests keep their order, and none of them is called.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};

mod lanes;

pub use self::lanes::{Lane, Lanes};

/// The client and session of a request, as numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Flow {
    /// The client.
    pub client: u64,
    /// Its session; any fixed number if it has none.
    pub session: u64,
}

/// A request that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(u64);

/// When a request was called, among all that were.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Since(u64);

/// A client gets a place in a queue that others have filled if one of them has at least so many
/// more requests there: with fewer, two clients would displace each other in turn.
pub const CLEARLY_MORE: usize = 2;

/// Keys that take turns, each with its waiting requests. A key is in `turns` exactly while it has
/// some.
#[derive(Debug, Clone)]
struct Turns<T> {
    turns: VecDeque<u64>,
    by_key: BTreeMap<u64, T>,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self { turns: VecDeque::new(), by_key: BTreeMap::new() }
    }
}

#[derive(Debug, Clone, Default)]
struct Client {
    sessions: Turns<VecDeque<Ticket>>,
    waiting: usize,
}

/// The requests that wait for a place, and which of them looks for one.
#[derive(Debug, Clone, Default)]
pub struct FairQueue {
    clients: Turns<Client>,
    /// Where nobody is called, all that wait are of clients that are held.
    called: Option<(Ticket, Flow)>,
    /// When the one that is called was called, for the first time.
    since: Since,
    /// How many were called.
    calls: u64,
    /// The one that was called last and had to let another go ahead.
    overtaken: Option<Ticket>,
    /// Clients that come ahead of their turns, in order.
    ahead: VecDeque<u64>,
    /// The last one that was called came ahead of its turn.
    was_ahead: bool,
    /// Each has somebody who waits.
    held: BTreeSet<u64>,
    last: u64,
}

impl FairQueue {
    /// An empty queue.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether no request waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.called.is_none() && self.clients.by_key.is_empty()
    }

    /// The request that looks for a place.
    #[must_use]
    pub fn called(&self) -> Option<Ticket> {
        self.called.map(|(ticket, _)| ticket)
    }

    /// How many clients wait.
    #[must_use]
    pub fn clients(&self) -> usize {
        let is_new = |client| !self.clients.by_key.contains_key(&client);
        let called = self.called.is_some_and(|(_, flow)| is_new(flow.client));
        self.clients.by_key.len() + usize::from(called)
    }

    /// Joins behind the others of its session. One that was called `before` and was turned away is
    /// called instead of one that was called later, or else joins before all. The first is called at
    /// once.
    pub fn join(&mut self, flow: Flow, before: Option<Since>) -> Ticket {
        self.last += 1;
        let ticket = Ticket(self.last);
        let is_next = self.called.is_none() || before.is_some_and(|before| before < self.since);
        if is_next && !self.held.contains(&flow.client) {
            self.put_back();
            self.call(ticket, flow);
            self.since = before.unwrap_or(self.since);
            return ticket;
        }
        let is_new = self.is_new(flow.client) && before.is_none();
        if is_new && self.overtakes() {
            self.overtaken = self.put_back();
            self.call(ticket, flow);
            self.was_ahead = true;
            return ticket;
        }
        if is_new {
            self.ahead.push_back(flow.client);
        }
        let client = self.clients.entry(flow.client, before.is_some());
        client.waiting += 1;
        let session = client.sessions.entry(flow.session, before.is_some());
        if before.is_some() {
            session.push_front(ticket)
        } else {
            session.push_back(ticket)
        }
        ticket
    }

    /// When a request that leaves was called; if it is not, as late as may be.
    #[must_use]
    pub fn since(&self, ticket: Ticket) -> Since {
        if self.called() == Some(ticket) { self.since } else { Since(self.calls) }
    }

    fn call(&mut self, ticket: Ticket, flow: Flow) {
        self.calls += 1;
        (self.called, self.since) = (Some((ticket, flow)), Since(self.calls));
    }

    fn call_next(&mut self) {
        self.called = None;
        if let Some((ticket, flow)) = self.next() {
            self.call(ticket, flow);
        }
    }

    /// Whether nothing of the client waits.
    fn is_new(&self, client: u64) -> bool {
        let is_called = self.called.is_some_and(|(_, flow)| flow.client == client);
        !is_called && !self.clients.by_key.contains_key(&client)
    }

    /// Whether a new client comes ahead of the one that is called.
    fn overtakes(&self) -> bool {
        let others = |flow: Flow| self.clients.by_key.contains_key(&flow.client);
        self.called.is_some_and(|(ticket, flow)| self.overtaken != Some(ticket) && others(flow))
    }

    /// The one that is called waits on, before all others.
    fn put_back(&mut self) -> Option<Ticket> {
        let (ticket, flow) = self.called.take()?;
        let client = self.clients.entry(flow.client, true);
        client.waiting += 1;
        client.sessions.entry(flow.session, true).push_front(ticket);
        Some(ticket)
    }

    /// The request stops waiting, with a place or without. Returns the one that is called next, if
    /// this one had been called.
    pub fn leave(&mut self, ticket: Ticket, flow: Flow) -> Option<Ticket> {
        if self.called() == Some(ticket) {
            self.call_next();
            return self.called();
        }
        self.remove(flow, |session| {
            let at = session.iter().position(|waiting| *waiting == ticket)?;
            session.remove(at)
        });
        None
    }

    /// Whether a request of this flow that comes now is behind another.
    #[must_use]
    pub fn is_before(&self, flow: Flow) -> bool {
        self.called.is_some() || self.held.contains(&flow.client)
    }

    /// The called request may not have the free places, since its client has used its share: it waits
    /// on, before the others of its client, which is held. Returns who is called in its place.
    pub fn hold(&mut self, ticket: Ticket, flow: Flow) -> Option<Ticket> {
        if self.called() != Some(ticket) {
            return None;
        }
        let client = self.clients.entry(flow.client, false);
        client.waiting += 1;
        client.sessions.entry(flow.session, true).push_front(ticket);
        self.held.insert(flow.client);
        self.call_next();
        self.called()
    }

    /// The first request of a held client: the one that finds out when the client may go on.
    #[must_use]
    pub fn first_of_held(&self, client: u64) -> Option<Ticket> {
        let sessions = &self.clients.by_key.get(&client)?.sessions;
        let first = sessions.by_key.get(sessions.turns.front()?)?.front().copied();
        first.filter(|_| self.held.contains(&client))
    }

    /// The client may have places again. Returns who is called now, if nobody was.
    pub fn release(&mut self, client: u64) -> Option<Ticket> {
        if self.held.remove(&client) && self.called.is_none() {
            self.call_next();
            return self.called();
        }
        None
    }

    /// Whether another client's request would give way to one of this flow.
    #[must_use]
    pub fn gives_way_to(&self, flow: Flow) -> bool {
        self.most_of_all(flow).is_some()
    }

    /// Removes the latest request of the client with most, in favour of this flow. Returns the
    /// removed request.
    pub fn give_way_to(&mut self, flow: Flow) -> Option<Ticket> {
        let client = self.most_of_all(flow)?;
        let sessions = &self.clients.by_key.get(&client)?.sessions;
        let latest = |(_, waiting): &(&u64, &VecDeque<Ticket>)| waiting.back().copied();
        let session = sessions.by_key.iter().max_by_key(latest).map(|(session, _)| *session)?;
        self.remove(Flow { client, session }, VecDeque::pop_back)
    }

    /// The client with most waiting requests, if it has clearly more than this flow's. The one that is
    /// called counts, though it would not give way.
    fn most_of_all(&self, flow: Flow) -> Option<u64> {
        let called = |client| usize::from(self.called.is_some_and(|(_, of)| of.client == client));
        let by_key = &self.clients.by_key;
        let own = by_key.get(&flow.client).map_or(0, |it| it.waiting) + called(flow.client);
        let (client, most) = by_key
            .iter()
            .map(|(key, client)| (*key, client.waiting + called(*key)))
            .max_by_key(|(_, waiting)| *waiting)?;
        (client != flow.client && most >= own + CLEARLY_MORE).then_some(client)
    }

    /// The first of the session whose turn it is, of the client whose turn it is, or that comes ahead
    /// of it.
    fn next(&mut self) -> Option<(Ticket, Flow)> {
        let is_open = |client: &&u64| !self.held.contains(*client);
        let first = self.ahead.iter().find(is_open).filter(|_| !self.was_ahead);
        self.was_ahead = first.is_some();
        let client = *first.or_else(|| self.clients.turns.iter().find(is_open))?;
        self.ahead.retain(|other| *other != client);
        let session = *self.clients.by_key.get(&client)?.sessions.turns.front()?;
        let flow = Flow { client, session };
        let next = self.remove(flow, VecDeque::pop_front);
        self.clients.pass(client, |client| &mut client.sessions, session);
        Some((next?, flow))
    }

    fn remove(
        &mut self,
        flow: Flow,
        take: impl FnOnce(&mut VecDeque<Ticket>) -> Option<Ticket>,
    ) -> Option<Ticket> {
        let client = self.clients.by_key.get_mut(&flow.client)?;
        let session = client.sessions.by_key.get_mut(&flow.session)?;
        let taken = take(session)?;
        client.waiting -= 1;
        if session.is_empty() {
            client.sessions.forget(flow.session);
        }
        if client.waiting == 0 {
            self.clients.forget(flow.client);
            self.ahead.retain(|client| *client != flow.client);
            self.held.remove(&flow.client);
        }
        Some(taken)
    }
}

impl<T: Default> Turns<T> {
    fn entry(&mut self, key: u64, first: bool) -> &mut T {
        let turns = &mut self.turns;
        if first {
            turns.retain(|other| *other != key);
            turns.push_front(key);
        } else if !self.by_key.contains_key(&key) {
            turns.push_back(key);
        }
        self.by_key.entry(key).or_default()
    }

    fn forget(&mut self, key: u64) {
        self.by_key.remove(&key);
        self.turns.retain(|other| *other != key);
    }

    /// Moves the key behind the others after its turn, and so the one below it, if they still have
    /// requests.
    fn pass<U>(&mut self, key: u64, below: impl FnOnce(&mut T) -> &mut Turns<U>, inner: u64) {
        if let Some(value) = self.by_key.get_mut(&key) {
            let inner_turns = &mut below(value).turns;
            if inner_turns.front() == Some(&inner) {
                inner_turns.rotate_left(1);
            }
        }
        if let Some(at) = self.turns.iter().position(|other| *other == key) {
            self.turns.remove(at);
            self.turns.push_back(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    fn flow(client: u64) -> Flow {
        Flow { client, session: 0 }
    }

    /// Joins for each of these flows in turn; then each one that is called takes a place.
    fn order(flows: &[Flow]) -> Vec<usize> {
        let mut queue = FairQueue::new();
        let tickets: Vec<_> = flows.iter().map(|flow| queue.join(*flow, None)).collect();
        let mut order = Vec::new();
        while let Some(called) = queue.called() {
            let at = tickets.iter().position(|ticket| *ticket == called).unwrap();
            order.push(at);
            queue.leave(called, flows[at]);
        }
        assert!(queue.is_empty());
        order
    }

    #[test]
    fn a_client_with_one_request_waits_for_one_of_another_client_and_not_for_all() {
        let mut flows = alloc::vec![flow(1); 50];
        flows.push(flow(2));
        let order = order(&flows);
        assert_eq!(order.len(), 51);
        assert!(order.iter().position(|at| *at == 50).unwrap() <= 2, "{order:?}");
        // Requests of one client are served in the order of their arrival.
        assert!(order.iter().filter(|at| **at < 50).is_sorted());
    }

    #[test]
    fn a_new_client_comes_ahead_of_the_one_that_is_called_and_of_nobody_twice() {
        let mut queue = FairQueue::new();
        let many: Vec<_> = (0..50).map(|_| queue.join(flow(1), None)).collect();
        assert_eq!(queue.called(), Some(many[0]));
        let one = queue.join(flow(2), None);
        assert_eq!(queue.called(), Some(one), "it is next, though fifty came before");
        let other = queue.join(flow(3), None);
        assert_eq!(queue.called(), Some(one), "nobody has more waiting than that one");
        assert_eq!(queue.leave(one, flow(2)), Some(many[0]), "which is not overtaken again");
        let late = queue.join(flow(4), None);
        assert_eq!(queue.called(), Some(many[0]));
        let order = [other, many[1], late, many[2], many[3]];
        let mut left = (many[0], flow(1));
        for (next, of) in order.into_iter().zip([3, 1, 4, 1, 1]) {
            assert_eq!(queue.leave(left.0, left.1), Some(next));
            left = (next, flow(of));
        }
    }

    /// A client with twenty requests, and another new one whenever `every` were served: the clients
    /// of the first so many that were served, in order. `join` and `serve` are the queue's.
    fn beside_new_clients<Q>(
        (every, turns): (u64, u64),
        queue: &mut Q,
        join: fn(&mut Q, u64),
        serve: fn(&mut Q) -> u64,
    ) -> Vec<u64> {
        (0..20).for_each(|_| join(queue, 1));
        let mut served = Vec::new();
        for at in 0..turns {
            if at % every == 0 {
                join(queue, at + 2);
            }
            served.push(serve(queue));
        }
        served
    }

    #[test]
    fn however_many_new_clients_come_the_others_have_their_turns() {
        type Named = (FairQueue, BTreeMap<Ticket, u64>);
        let by_queue = |load| {
            let join = |(queue, of): &mut Named, client| {
                of.insert(queue.join(flow(client), None), client);
            };
            let serve = |(queue, of): &mut Named| {
                let called = queue.called().unwrap();
                queue.leave(called, flow(of[&called]));
                of[&called]
            };
            beside_new_clients(load, &mut Named::default(), join, serve)
        };
        // Clients in turn, the first of them with twenty requests and the others with one.
        let by_round = |load| {
            let join = |round: &mut VecDeque<u64>, client| {
                if !round.contains(&client) {
                    round.push_back(client);
                }
            };
            let serve = |round: &mut VecDeque<u64>| {
                let client = round.pop_front().unwrap();
                round.extend((client == 1).then_some(client));
                client
            };
            beside_new_clients(load, &mut VecDeque::new(), join, serve)
        };
        let turns = |served: &[u64]| {
            let of_the_first = (1..).zip(served).filter(|(_, client)| **client == 1);
            of_the_first.map(|(at, _)| at).collect::<Vec<u64>>()
        };
        // As many come as are served: those that wait become more and more, and each has its part.
        let (served, round) = (by_queue((1, 100)), by_round((1, 100)));
        let (own, fair) = (turns(&served), turns(&round));
        assert_eq!(own.len(), fair.len(), "{served:?}");
        let mut and_next = own.iter().zip(&fair[1..]);
        assert!(and_next.all(|(at, next)| at < next), "a turn behind the round: {served:?}");
        // With room for both, every other turn is the first one's.
        let served = by_queue((2, 40));
        let own = turns(&served);
        assert_eq!(own.len(), 20, "{served:?}");
        assert!(own.windows(2).all(|turns| turns[1] - turns[0] <= 2), "{served:?}");
    }

    #[test]
    fn the_sessions_of_one_client_take_turns_and_take_no_turn_from_others() {
        let of = |client, session| Flow { client, session };
        let flows =
            [of(1, 1), of(1, 1), of(1, 1), of(1, 1), of(1, 2), of(1, 3), of(2, 1), of(2, 1)];
        // The first of the other comes ahead of the first of all; then both clients take turns.
        assert_eq!(order(&flows), [6, 0, 7, 4, 5, 1, 2, 3]);
    }

    #[test]
    fn one_that_was_turned_away_on_its_turn_is_next() {
        let mut queue = FairQueue::new();
        let tickets: Vec<_> = (0..3).map(|_| queue.join(flow(1), None)).collect();
        assert_eq!(queue.leave(tickets[0], flow(1)), Some(tickets[1]));
        let again = queue.join(flow(2), Some(Since::default()));
        assert_eq!(queue.called(), Some(again));
        assert_eq!(queue.leave(again, flow(2)), Some(tickets[1]));
        assert_eq!(queue.leave(tickets[1], flow(1)), Some(tickets[2]));
    }

    #[test]
    fn whoever_asks_elsewhere_in_vain_is_called_again_before_those_that_were_called_meanwhile() {
        let mut queue = FairQueue::new();
        let many: Vec<_> = (0..9).map(|_| queue.join(flow(1), None)).collect();
        let mut one = queue.join(flow(2), None);
        for _ in 0..3 {
            assert_eq!(queue.called(), Some(one));
            let since = queue.since(one);
            assert_eq!(queue.leave(one, flow(2)), Some(many[0]), "it asks elsewhere");
            one = queue.join(flow(2), Some(since));
        }
        // Two that are away: whoever comes back first, the one that was called first is called.
        for comes_first in [true, false] {
            assert_eq!(queue.called(), Some(one));
            let since = queue.since(one);
            let first = queue.leave(one, flow(2)).unwrap();
            let sinces = [since, queue.since(first)];
            assert!(queue.leave(first, flow(1)).is_some());
            let mut back = |which: usize| queue.join(flow(2 - which as u64), Some(sinces[which]));
            let other;
            (one, other) = if comes_first {
                let one = back(0);
                (one, back(1))
            } else {
                let other = back(1);
                (back(0), other)
            };
            assert_eq!(queue.called(), Some(one), "{comes_first}");
            // It has a place: the other is next.
            assert_eq!(queue.leave(one, flow(2)), Some(other), "{comes_first}");
            one = queue.join(flow(2), None);
        }
    }

    #[test]
    fn a_waiter_that_leaves_before_its_turn_wakes_nobody() {
        let mut queue = FairQueue::new();
        let tickets: Vec<_> = (0..3).map(|_| queue.join(flow(1), None)).collect();
        assert_eq!(queue.leave(tickets[1], flow(1)), None);
        assert_eq!(queue.called(), Some(tickets[0]));
        assert_eq!(queue.leave(tickets[0], flow(1)), Some(tickets[2]));
        assert_eq!(queue.leave(tickets[2], flow(1)), None);
        assert!(queue.is_empty());
    }

    #[test]
    fn only_a_client_that_has_clearly_more_gives_way() {
        let mut queue = FairQueue::new();
        let tickets: Vec<_> = (0..4).map(|_| queue.join(flow(1), None)).collect();
        assert!(!queue.gives_way_to(flow(1)), "not to itself");
        assert_eq!(queue.give_way_to(flow(2)), Some(tickets[3]), "the latest");
        let second = queue.join(flow(2), None);
        assert_eq!(queue.give_way_to(flow(2)), Some(tickets[2]), "three and one");
        queue.join(flow(2), None);
        assert!(!queue.gives_way_to(flow(2)), "two each");
        assert_eq!(queue.give_way_to(flow(1)), None, "two each");
        assert!(queue.gives_way_to(flow(3)), "two and none");
        assert_eq!(queue.called(), Some(second), "who is called stays");
    }

    #[test]
    fn a_client_that_is_held_keeps_its_order_and_keeps_nobody_else_waiting() {
        let mut queue = FairQueue::new();
        let own: Vec<_> = (0..3).map(|_| queue.join(flow(1), None)).collect();
        let first = queue.join(flow(4), None);
        let other = queue.join(flow(2), None);
        assert_eq!(queue.leave(first, flow(4)), Some(own[0]), "every other turn is by the round");
        assert_eq!(queue.hold(own[0], flow(1)), Some(other), "the next is another client's");
        assert_eq!(queue.hold(own[0], flow(1)), None, "it is not called");
        assert_eq!((queue.first_of_held(1), queue.first_of_held(2)), (Some(own[0]), None));
        assert_eq!(queue.leave(other, flow(2)), None, "nobody of the client that is held");
        assert!(!queue.is_empty());
        assert!(queue.is_before(flow(1)) && !queue.is_before(flow(3)), "only its own wait for it");
        let late = queue.join(flow(3), None);
        assert_eq!(queue.called(), Some(late));
        assert_eq!(queue.release(1), None, "another looks for a place");
        assert_eq!(queue.leave(late, flow(3)), Some(own[0]));
        assert_eq!(queue.hold(own[0], flow(1)), None);
        assert_eq!(queue.release(2), None, "it is not held");
        assert_eq!(queue.release(1), Some(own[0]), "as before");
        assert_eq!(queue.leave(own[0], flow(1)), Some(own[1]));
        assert_eq!(queue.leave(own[1], flow(1)), Some(own[2]));
    }

    #[test]
    fn a_client_whose_last_request_leaves_is_held_no_more() {
        let mut queue = FairQueue::new();
        let only = queue.join(flow(1), None);
        assert_eq!(queue.hold(only, flow(1)), None);
        assert_eq!(queue.leave(only, flow(1)), None);
        assert!(queue.is_empty());
        let next = queue.join(flow(1), None);
        assert_eq!(queue.called(), Some(next));
    }
}
