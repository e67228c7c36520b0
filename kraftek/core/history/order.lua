-- KEYS: the rules. Returns where the order is in which rooms are told. Nil where no rules stand.
local order = order_of(KEYS[1]:sub(1, -1 - #(OWN .. 'rules')))
return order and in_order(order)
