//! The dangers that the rules of a session answer, each written as a story and played on the real
//! machines.
//!
//! Every test stages one danger: peers A, B, C and so on, each with its own process, clock and
//! machines; clients that ask for changes; messages that arrive when the story says so, twice,
//! late or never. Its documentation says what the danger is and which rule answers it; the body
//! is the story; what the machines did in between is printed line by line. To read one:
//!
//! ```text
//! cargo test -p warmhop-core --test flaws -- --nocapture a_deposed_owner
//! ```
//!
//! A test that fails prints its whole narrative. How to read its lines:
//!
//! * `A2` is the process that peer A runs after its first restart;
//! * `1.A` is a ballot, its round and who made it; `1.A/3` is the third record of that ballot;
//! * `c2{A B D}` are the session's members after one change of them, `c2{A B D}<c1{A B C}` is the
//!   seal between the two;
//! * `[tea/B milk/A]` is what the session holds: tea was put there by the app on B, milk on A;
//! * lines that begin with `#` are the storyteller's.
//!
//! Whatever a story asks for itself, the stage watches over all of them: no answer lacks what was
//! acknowledged before it was asked for (I4, I8), no request is applied twice (I6), answers
//! extend one another (I4), a position names one body (I1), and no promise falls (I2).

#![expect(clippy::print_stdout, reason = "the narrative is what a reader came for")]

mod births;
mod changes_of_members;
mod claims;
mod loss;
mod messages;
mod owners;
mod stage;
mod time;
