//! Operations on registers at their owner. They wait for nothing, so each is executed in the very
//! step in which its request gets its turn.

use http::Response;
use warmhop_core::ids::{RequestKey, SessionKey};
use warmhop_core::session::message::{Exec, Stored};
use warmhop_core::session::{Ctx, Outcome, Session as Machine, Submit, Ticket};
use warmhop_core::view::Liveness;

use crate::http::body::{Body, BoxError};
use crate::links::wire;
use crate::request::local_error::{LocalError, app_failed, error_chain};
use crate::request::node::Node;
use crate::request::own_register::Unfinished;
use crate::request::problem::Problem;
use crate::request::registers::operation::{
    Answer, FRAME_BYTES_MAX, Next, Operation, Turn, execute,
};
use crate::sessions::events::Event;
use crate::sessions::store::{AsOwner, InLine};

impl Node {
    /// Executes the operation of a request whose turn it is; `None` if it could not begin, or the
    /// record that it would begin from is not here: the line then reports what happens.
    pub(crate) fn operate(
        &self,
        line: &mut InLine,
        operation: &[u8],
    ) -> Result<Option<Answer>, LocalError> {
        let operation = wire::decode_borrowed::<Operation<'_>, FRAME_BYTES_MAX>(operation)
            .map_err(|error| failed(error.into()))?;
        self.operate_in_turn(line, &operation)
    }

    /// The same for an operation that was never encoded.
    fn operate_in_turn(
        &self,
        line: &mut InLine,
        operation: &Operation<'_>,
    ) -> Result<Option<Answer>, LocalError> {
        let executed = line.execute_at_once(self.incarnation, |machine, ctx, exec| {
            self.ran(operation, machine, ctx, exec)
        });
        Ok(executed.transpose()?.flatten())
    }

    /// Begins an operation here, if this peer owns the register and hears a majority of its members.
    /// `None` if it has to go the way of any request.
    ///
    /// # Errors
    /// If the operation cannot be carried out.
    pub(crate) fn operates_here(
        &self,
        key: &SessionKey,
        rid: RequestKey,
        operation: &Operation<'_>,
    ) -> Option<Result<Unfinished, Problem>> {
        let view = self.view();
        // A peer that was started a moment ago and hears no other waits until it does.
        let hears_anyone = view.live_peers().any(|(_, it)| it.alive == Liveness::Alive);
        if !hears_anyone && !self.newborn_for().is_zero() {
            return None;
        }
        let wall = self.clock.wall();
        let safe = matches!(operation, Operation::Get);
        let submit =
            |ticket| Submit { ticket, rid, fingerprint: 0, keyed: false, seen: None, safe };
        let begun = self.operate_as_owner(key, submit, operation)?;
        Some(match begun {
            Ok(begun) => Ok(Unfinished { begun, view, wall }),
            Err(error) => Err(app_failed(self.me.as_str(), &error)),
        })
    }

    /// Puts an operation in line for a register that this peer owns, and executes it if it has its turn
    /// at once, all in one step. `None` if this peer does not own it, or cannot commit or may not keep what
    /// the operation changes.
    fn operate_as_owner(
        &self,
        key: &SessionKey,
        submit: impl FnOnce(Ticket) -> Submit,
        operation: &Operation<'_>,
    ) -> Option<Result<AsOwner<Option<Answer>>, LocalError>> {
        let grows_to = match operation {
            Operation::Put { bytes, .. } => Some(bytes.len()),
            Operation::Expire { .. } => Some(0),
            Operation::Get | Operation::Delete { .. } | Operation::List { .. } => None,
        };
        let begun = self.store.operate_as_owner(key, submit, grows_to, |machine, ctx, exec| {
            self.ran(operation, machine, ctx, exec)
        })?;
        let AsOwner { line, ran, seen } = begun;
        Some(ran.transpose().map(|ran| AsOwner { line, ran, seen }))
    }

    fn ran(
        &self,
        operation: &Operation<'_>,
        machine: &mut Machine,
        ctx: &mut Ctx<'_>,
        exec: &Exec,
    ) -> (Outcome, Result<Option<Answer>, LocalError>) {
        match self.worked(operation, machine, ctx, exec) {
            Ok((outcome, answer)) => (outcome, Ok(answer)),
            Err(error) => (Outcome::Failed, Err(error)),
        }
    }

    fn worked(
        &self,
        operation: &Operation<'_>,
        machine: &mut Machine,
        ctx: &mut Ctx<'_>,
        exec: &Exec,
    ) -> Result<(Outcome, Option<Answer>), LocalError> {
        let base = match machine.exec_begin(ctx, exec) {
            Ok(base) => base,
            Err(refused) => return Ok((Outcome::from(refused), None)),
        };
        let (ttl, now) = (ctx.policy.ttl, ctx.wall);
        let state = base.state.as_ref().filter(|_| !base.is_over(exec, now, ttl));
        let held = state.map_or(0, |state| state.len());
        let turn = Turn { expiry: base.expiry, idle_until: exec.expiry, n: exec.p.map(|p| p.n) };
        let (answer, next) = execute(operation, state, &turn, ttl, now).map_err(failed)?;
        if let Some(Next { state: Some(state), .. }) = &next
            && !self.store.memory().may_grow(held, state.len())
        {
            return Err(LocalError::Problem(Box::new(self.refused_for_want_of_room())));
        }
        let done = match next {
            Some(Next { state, until }) => {
                machine.exec_end_until(ctx, exec, &base, Some(state), until)
            }
            None => machine.exec_end(ctx, exec, &base, None, Stored::Applied),
        };
        Ok((Outcome::from(done), Some(answer)))
    }
}

impl Unfinished {
    /// The answer once it may leave.
    ///
    /// # Errors
    /// With the operation, if it has to go the way of any request from here.
    pub(crate) async fn answer(
        mut self,
        node: &Node,
        operation: &Operation<'_>,
    ) -> Result<Result<Answer, Problem>, Self> {
        let AsOwner { line, ran, .. } = &mut self.begun;
        loop {
            match line.next().await {
                Event::Turn if ran.is_none() => match node.operate_in_turn(line, operation) {
                    Ok(answer) => *ran = Some(answer),
                    Err(error) => return Ok(Err(app_failed(node.me.as_str(), &error))),
                },
                Event::Release { .. } if matches!(ran, Some(Some(_))) => {
                    let answer = ran.take().flatten();
                    return answer.map(Ok).ok_or(self);
                }
                event => {
                    line.put_back(event);
                    return Err(self);
                }
            }
        }
    }
}

fn failed(error: BoxError) -> LocalError {
    LocalError::Failed(error_chain(&*error))
}

/// A response in the form for another peer: the answer to an operation becomes its body.
pub(crate) fn as_sent(
    mut response: Response<Body>,
    answer: Option<Answer>,
) -> Result<Response<Body>, BoxError> {
    if let Some(answer) = answer {
        let bytes = wire::encode(&answer, 2 * FRAME_BYTES_MAX)?;
        *response.body_mut() = Body::from(bytes);
    }
    Ok(response)
}
