// The state of the ranking board and its transitions, without DOM: the view renders a state and requests the next.
//
// States are immutable. `cards`: ids in the order of their letters. `tiers`: K lists of cards; 1 is best, a tier may be empty, the cards
// of one tier tie. `selected`: the selected card. `lastPlaced`: the card placed before. `history`: earlier tiers, for undo.

/** Create an empty board, or one with the tiers of a draft. No card starts in a tier: an order the labeler did not choose would bias. */
export function createBoard(cards, tiers = []) {
  const validTiers = cards.map((_, tier) => (tiers[tier] ?? []).filter((card) => cards.includes(card)));
  return { cards: [...cards], tiers: validTiers, selected: null, lastPlaced: null, history: [] };
}

/** Return the cards in the tray, in the order of their letters. */
export function unplacedCards(state) {
  return state.cards.filter((card) => tierOf(state, card) === null);
}

/** Return the tier of a card, from 0; null in the tray. */
export function tierOf(state, card) {
  const tier = state.tiers.findIndex((cards) => cards.includes(card));
  return tier < 0 ? null : tier;
}

/** Select a card; selecting it again, or null, deselects it. */
export function toggleSelected(state, card) {
  return { ...state, selected: card === state.selected ? null : card };
}

/** Put a card (the selected one) into a tier. */
export function placeCard(state, tier, card = state.selected) {
  if (card === null || tier < 0 || tier >= state.tiers.length) return state;
  if (tierOf(state, card) === tier) return { ...state, selected: null, lastPlaced: card };
  return withCardInTier(state, card, tier);
}

/** Return a card to the tray. */
export function returnToTray(state, card = state.selected) {
  if (card === null || tierOf(state, card) === null) return { ...state, selected: null };
  return withCardInTier(state, card, null);
}

/** Put the selected card into the tier of the card placed before it, else of the nearest tier above. */
export function tieWithLast(state) {
  const { selected } = state;
  if (selected === null) return state;
  const currentTier = tierOf(state, selected);
  const tierAbove = state.tiers.findLastIndex((cards, tier) => cards.length > 0 && (currentTier === null || tier < currentTier));
  const hasLast = state.lastPlaced !== null && state.lastPlaced !== selected;
  const targetTier = hasLast ? tierOf(state, state.lastPlaced) : tierAbove < 0 ? null : tierAbove;
  return targetTier === null ? state : placeCard(state, targetTier);
}

/** Move the selected card up (-1) or down (1); from the tray it enters at the bottom or the top. It stays selected. */
export function moveSelected(state, step) {
  const { selected } = state;
  if (selected === null) return state;
  const currentTier = tierOf(state, selected);
  const tier = currentTier === null ? (step > 0 ? 0 : state.tiers.length - 1) : currentTier + step;
  if (tier < 0 || tier >= state.tiers.length) return state;
  return { ...withCardInTier(state, selected, tier), selected };
}

/** Undo the last placement and deselect. */
export function undoLast(state) {
  if (state.history.length === 0) return { ...state, selected: null };
  return { ...state, tiers: state.history.at(-1), history: state.history.slice(0, -1), selected: null, lastPlaced: null };
}

/** Whether every card is placed. */
export function isComplete(state) {
  return unplacedCards(state).length === 0;
}

/** Format the order as "B > A = D > C". `names` gives the letter of a card. */
export function formatOrder(state, names) {
  return state.tiers
    .filter((cards) => cards.length > 0)
    .map((cards) => cards.map(names).sort().join(" = "))
    .join(" > ");
}

/** Return pairs [above, below] in which the card below has the better rating. `ratings` gives a card's rating or null. */
export function findContradictions(state, ratings) {
  const placed = state.cards.filter((card) => tierOf(state, card) !== null && ratings(card) !== null);
  return placed.flatMap((above) =>
    placed
      .filter((below) => tierOf(state, above) < tierOf(state, below) && ratings(above) < ratings(below))
      .map((below) => [above, below]),
  );
}

function withCardInTier(state, card, tier) {
  const tiers = state.tiers.map((cards) => cards.filter((item) => item !== card));
  if (tier !== null) {
    tiers[tier].push(card);
    tiers[tier].sort((a, b) => state.cards.indexOf(a) - state.cards.indexOf(b));
  }
  return { ...state, tiers, selected: null, lastPlaced: tier === null ? null : card, history: [...state.history, state.tiers] };
}
