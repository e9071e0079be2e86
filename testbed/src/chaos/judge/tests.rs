//! What is planted in a history is found, and nothing else.

use super::*;
