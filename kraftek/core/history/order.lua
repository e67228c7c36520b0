-- KEYS: the rules. Returns where the order is in which rooms are told. Nil where no rules stand.
local stand = rules_of(KEYS[1]:sub(1, -1 - #(OWN .. 'rules')))
return stand and in_order(order_of(stand))
