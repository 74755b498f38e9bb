"""Tests the order of a program, and the time of transfers that work does not hide."""

import pytest

from omni_jax.compile import hlo
from omni_jax.compile.cost import cost_of
from omni_jax.compile.schedule import Loop, scheduled_seconds, Transfer, Wait, Work

WORK = Work('add', 1, 0.0, 0.0, '')


def transfer(wait_name='', network='ICI fsdp'):
  """Returns a transfer; its groups stand for the network that carries it out."""
  return Transfer('gather', 'all-gather', 1, 8.0, network, '', wait_name)


@pytest.mark.parametrize(
  'order, seconds',
  [
    ([WORK, transfer(), WORK], 2 + 3 + 2),
    ([transfer('a'), WORK, WORK, Wait('a')], 2 + 2),
    ([transfer('a'), WORK, Wait('a'), WORK], 3 + 2),
    # A network carries out one transfer at a time.
    ([transfer('a'), transfer('b'), WORK, Wait('b')], 3 + 3),
    ([transfer('a'), transfer('b', 'ICI expert'), WORK, Wait('b'), Wait('a')], 3),
    ([transfer('a'), transfer(), WORK, Wait('a')], 3 + 3 + 2),
    ([Loop(5, [transfer('a'), WORK, Wait('a')]), WORK], 5 * 3 + 2),
    ([transfer('a'), Loop(5, [WORK]), Wait('a')], 5 * 2),
    ([WORK, transfer('a')], 2 + 3),
  ],
  ids=[
    'not_hidden',
    'hidden',
    'partly_hidden',
    'two_transfers_on_one_network',
    'two_networks',
    'one_transfer_delays_another',
    'loop',
    'hidden_behind_a_loop',
    'never_awaited',
  ],
)
def test_transfers_take_time_in_a_schedule_only_where_work_does_not_hide_them(
  order, seconds
):
  """Every instruction takes 2 seconds and every transfer 3."""

  def network_seconds(transfer):
    return transfer.groups, 3.0

  assert scheduled_seconds(order, lambda work: 2.0, network_seconds) == seconds


def test_the_order_of_a_program_has_the_three_forms_of_asynchronous_collectives():
  """They are async-start, a `-start` opcode, and a start inside a fusion."""
  text = """HloModule m, is_scheduled=true

%inside (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  ROOT %r = f32[8]{0} all-to-all(%a), channel_id=1, replica_groups={{0,1}}
}

%begin (b: f32[8]) -> f32[16] {
  %b = f32[8]{0} parameter(0)
  %g = f32[16]{0} all-gather(%b), channel_id=7, replica_groups={{0,1}}, dimensions={0}
  ROOT %s = f32[16]{0} custom-call(%g), custom_call_target="AsyncCollectiveStart"
}

%end (c: f32[16]) -> f32[16] {
  %c = f32[16]{0} parameter(0)
  %h = f32[16]{0} all-gather(%c), channel_id=7, replica_groups={{0,1}}, dimensions={0}
  ROOT %t = f32[16]{0} custom-call(%h), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (p: f32[8]) -> f32[16] {
  %p = f32[8]{0} parameter(0)
  %x = ((f32[8]{0}), f32[8]{0}) async-start(%p), calls=%inside
  %y = (f32[8]{0}, f32[16]{0}) all-gather-start(%p), channel_id=3, replica_groups={{0,1}}, dimensions={0}
  %z = f32[16]{0} fusion(%p), kind=kCustom, calls=%begin
  %q = f32[8]{0} add(%p, %p)
  %zd = f32[16]{0} fusion(%z), kind=kCustom, calls=%end
  %xu = ((f32[8]{0}), f32[8]{0}) async-update(%x), calls=%inside
  %xd = f32[8]{0} async-done(%xu), calls=%inside
  %yd = f32[16]{0} all-gather-done(%y)
  %u = f32[8]{0} all-reduce(%xd), channel_id=9, replica_groups={{0,1}}, to_apply=%inside
  ROOT %v = f32[16]{0} add(%yd, %zd)
}
"""
  order = []
  transfers = []
  for event in cost_of(hlo.parse(text)).order:
    if not isinstance(event, Work) or event.name == 'q':
      order.append(event)
    if isinstance(event, Transfer):
      transfers.append((event.kind, event.wait_name))
  assert transfers == [
    ('all-to-all', 'x'),
    ('all-gather', 'y'),
    ('all-gather', 'channel 7'),
    ('all-reduce', ''),
  ]
  after_the_starts = order[3:7]
  assert [event.name for event in after_the_starts] == ['q', 'channel 7', 'x', 'y']
