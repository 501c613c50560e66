import math, functools
import torch
from torch import nn
from torch.nn import functional as F
from einops import rearrange, einsum
import test_check_attention as base
from test_check_attention import *
from test_check_attention import Layer, prepared, rule, wrong, right
from minillm.embeddings import rotate
WRONG = base.WRONG = []
RIGHT = base.RIGHT = []
aw = base.attention.attention_weights
def causal(q,k): return causal_mask(q.shape[2],k.shape[2])

@right("Attention")
class PerHead(Layer):
    def forward(self,x,angles,positions=None,cache=None,layer=0):
        q,k,v=self.place(*self.project(x),angles)
        k,v,kp=self.recall(k,v,positions,cache,layer)
        m=self.mask(q.shape[2],k.shape[2],positions,kp,cache)
        g=q.shape[1]//k.shape[1]
        outs=[self.attend(q[:,h:h+1],k[:,h//g:h//g+1],v[:,h//g:h//g+1],m) for h in range(q.shape[1])]
        return self.finish(torch.cat(outs,1),x)
@right("Attention")
class SharesFirst(Layer):
    def forward(self,x,angles,positions=None,cache=None,layer=0):
        q,k,v=self.place(*self.project(x),angles)
        k,v,kp=self.recall(k,v,positions,cache,layer)
        m=self.mask(q.shape[2],k.shape[2],positions,kp,cache)
        return self.finish(self.attend(q,share_heads(k,q.shape[1]),share_heads(v,q.shape[1]),mask=m),x)
@right("Attention")
class KeywordArgs(Layer):
    def __init__(self,*args,**kwargs): super().__init__(*args,**kwargs)
    def forward(self,x,angles,*args,**kwargs): return super().forward(x,angles,*args,**kwargs)
@right("attention_weights")
def minus_1e9(q,k,mask): return (q@k.mT*(q.shape[-1]**-.5)).masked_fill(mask==0,-1e9).softmax(-1)
@right("visible")
def vis_loop(positions,key_positions,window=None):
    s=visible(positions,key_positions,window); return s.clone()
@right("attend")
def heads_loop(q,k,v,mask=None):
    g=q.shape[1]//k.shape[1]
    return torch.stack([attend_torch(q[:,h:h+1],k[:,[h//g]],v[:,[h//g]],mask)[:,0] for h in range(q.shape[1])],1)
@right("causal_mask")
def full(T,S,window=None):
    full=torch.tril(torch.ones(S,S))
    if window: full=full-torch.tril(torch.ones(S,S),-window)
    return full[S-T:].bool()

# wrong
@wrong("causal_mask","window")
def window_zero_based(T,S,window=None):
    k=torch.arange(S);q=torch.arange(T)[:,None]+S-T
    m=k<=q
    if window: m&=k>=q-window
    return m
@wrong("causal_mask","first|last")
def query_absolute(T,S,window=None):
    k=torch.arange(S);q=torch.arange(T)[:,None]
    m=k<=q
    if window: m&=k>q-window
    return m
@wrong("causal_mask","window")
def window_max(T,S,window=None):
    w=min(window or S,T); return causal_mask(T,S,w)
@wrong("causal_mask","future|wrong way")
def tril_transposed(T,S,window=None):
    m=causal_mask(T,S,window); return m.flip(0,1)
@wrong("causal_mask","dtype|bool")
def integer(T,S,window=None): return causal_mask(T,S,window).long()
@wrong("causal_mask","itself")
def triu_inverted(T,S,window=None):
    m=~torch.ones(T,S,dtype=torch.bool).triu(S-T)
    return m if window is None else m&causal_mask(T,S,window)

@wrong("attention_weights","sqrt|head_dim|scal")
def scale_by_last_k(q,k,mask): return (q@k.mT/math.sqrt(k.shape[-2])).masked_fill(~mask,-torch.inf).softmax(-1)
@wrong("attention_weights","scale|sqrt|square root")
def scale_squared(q,k,mask): return (q@k.mT/q.shape[-1]**2).masked_fill(~mask,-torch.inf).softmax(-1)
@wrong("attention_weights","square root|head_dim|sqrt")
def scale_both(q,k,mask):
    s=math.sqrt(q.shape[-1]);return ((q/s)@(k/s).mT).masked_fill(~mask,-torch.inf).softmax(-1)
@wrong("attention_weights","mask|hid")
def scores_times_mask_then_renorm(q,k,mask):
    w=(q@k.mT/math.sqrt(q.shape[-1])).softmax(-1)*mask
    return w
@wrong("attention_weights","softmax|sum|add")
def relu_normalised(q,k,mask):
    s=(q@k.mT/math.sqrt(q.shape[-1])).relu()*mask
    return s/(s.sum(-1,keepdim=True)+1e-6)
@wrong("attention_weights","NaN|overflow|inf")
def minus_inf_mult(q,k,mask): return (q@k.mT/math.sqrt(q.shape[-1])-(1-mask.float())*float('inf')).softmax(-1)
@wrong("attention_weights","softmax|sum|add up|axis")
def sm_dim1(q,k,mask): return F.softmax((q@k.mT/math.sqrt(q.shape[-1])).masked_fill(~mask,-torch.inf),dim=1)
@wrong("attention_weights","in place|chang")
def mask_inplace(q,k,mask):
    mask|=torch.eye(mask.shape[-2],mask.shape[-1],dtype=torch.bool); return aw(q,k,mask)
@wrong("attention_weights","mask|hid|see")
def mask_adds_self(q,k,mask):
    return aw(q,k,mask|torch.ones(mask.shape[-2:],dtype=torch.bool).triu(mask.shape[-1]-mask.shape[-2]).tril(mask.shape[-1]-mask.shape[-2]))
@wrong("attention_weights","dtype")
def numpyish(q,k,mask): return aw(q.double(),k.double(),mask)
@wrong("attention_weights","sum|add up|less than 1|eps|multipl")
def leaky(q,k,mask): return aw(q,k,mask)*.9
@wrong("attention_weights","head")
def head_average(q,k,mask): return aw(q,k,mask).mean(1,keepdim=True).expand(-1,q.shape[1],-1,-1)
@wrong("attention_weights","quer|key")
def ignores_q(q,k,mask): return aw(k[:,:,-q.shape[2]:],k,mask)
@wrong("attention_weights","temperature|divided|sqrt")
def temperature(q,k,mask): return aw(q/0.7,k,mask)
@wrong("attention_weights","batch|row")
def batch_mean_mask(q,k,mask):
    return aw(q,k,mask[-1] if mask.ndim==4 else mask)

@wrong("split_heads","shape|number of heads")
def sp1(x,head_dim): return rearrange(x,"B T (H D) -> B H T D",H=head_dim)
@wrong("split_heads","mix|position")
def sp2(x,head_dim): return rearrange(x,"B (T H) D -> B H T D",H=1).reshape(x.shape[0],-1,x.shape[1],head_dim)
@wrong("split_heads","shape")
def sp3(x,head_dim): return rearrange(x,"B T (H D) -> B H D T",D=head_dim)
@wrong("split_heads","order|coordinates")
def sp4(x,head_dim): return split_heads(x,head_dim).flip(-1)
@wrong("merge_heads","shape")
def mg1(x): return rearrange(x,"B H T D -> B H (T D)")
@wrong("merge_heads","order|coordinates")
def mg2(x): return merge_heads(x.flip(-1))
@wrong("merge_heads","numbers|chang|mov")
def mg3(x): return merge_heads(x)/x.shape[1]
@wrong("share_heads","shape")
def sh1(x,n_heads): return x.repeat(1,n_heads,1,1)
@wrong("share_heads","raised|view|shape")
def sh2(x,n_heads): return x.view(x.shape[0],n_heads,x.shape[2],x.shape[3])
@wrong("share_heads","h //|neighb")
def sh3(x,n_heads): return x[:,(torch.arange(n_heads)%x.shape[1])]
@wrong("share_heads","neighb|last|heads")
def sh4(x,n_heads): return torch.cat((x,x[:,-1:].expand(-1,n_heads-x.shape[1],-1,-1)),1)

@wrong("attend","future|mask|hid|nothing")
def at1(q,k,v,mask=None): return F.scaled_dot_product_attention(q,k,v,attn_mask=mask,enable_gqa=True)
@wrong("attend","key|value")
def at2(q,k,v,mask=None): return attend_torch(q,k,k,mask)
@wrong("attend","quer|key")
def at3(q,k,v,mask=None): return attend_torch(share_heads(k,q.shape[1])[:,:,-q.shape[2]:],k,v,mask)
@wrong("attend","shape|raised|fewer|key-value")
def at4(q,k,v,mask=None):
    k=share_heads(k,q.shape[1])
    mask=causal(q,k) if mask is None else mask
    return aw(q,k,mask)@v
@wrong("attend","mask|wrong way|True")
def at5(q,k,v,mask=None):
    return attend_torch(q,k,v,None if mask is None else ~mask)
@wrong("attend","mask|ignored|batch|row")
def at6(q,k,v,mask=None):
    if mask is not None and mask.ndim==4: mask=None
    return attend_torch(q,k,v,mask)
@wrong("attend","gradient|detach")
def at7(q,k,v,mask=None): return attend_torch(q,k,v.detach(),mask)
@wrong("attend","scale|sqrt|multipl|after")
def at8(q,k,v,mask=None):
    k,v,mask=prepared(q,k,v,mask)
    return (q@k.mT).masked_fill(~mask,-torch.inf).softmax(-1)@v/math.sqrt(q.shape[-1])
@wrong("attend","raised|head|K")
def at9(q,k,v,mask=None):
    B,H,T,D=q.shape
    assert k.shape[1]==H
    return attend_torch(q,k,v,mask)
@wrong("attend","T=1|one query|last|see")
def at10(q,k,v,mask=None):
    if q.shape[2]==1: k,v,mask=k[:,:,:1],v[:,:,:1],None
    return attend_torch(q,k,v,mask)
@wrong("attend","in place|chang")
def at11(q,k,v,mask=None):
    k*=1/math.sqrt(q.shape[-1]); k2,v,mask=prepared(q,k,v,mask)
    return (q@k2.mT).masked_fill(~mask,-torch.inf).softmax(-1)@v

@wrong("visible","window")
def vi1(p,kp,window=None): return p
@wrong("visible","window|future")
def vi2(positions,key_positions,window=None):
    s=visible(positions,key_positions)
    return s if window is None else s&((positions[:,:,None]-key_positions[:,None]).abs()[:,None]<=window)
@wrong("visible","padding")
def vi3(positions,key_positions,window=None):
    return (rule(positions,key_positions,window,padding=False)&(key_positions>=0)[:,None]|((positions<0)[:,:,None]&(key_positions>=0)[:,None]))[:,None]
@wrong("visible","document")
def vi4(positions,key_positions,window=None):
    n=(key_positions==0).cumsum(1); T=positions.shape[1]
    last=n[:,-1:,None].expand(-1,T,-1)
    return (rule(positions,key_positions,window,documents=False)&(n[:,None]==last))[:,None]
@wrong("visible","shape|raised|size")
def vi5(positions,key_positions,window=None):
    n=(key_positions==0).cumsum(1)
    return (rule(positions,key_positions,window,documents=False)&(n[:,:,None]==n[:,None]))[:,None]
@wrong("visible","inverted|True|wrong way")
def vi6(positions,key_positions,window=None): return ~visible(positions,key_positions,window)
@wrong("visible","itself")
def vi7(positions,key_positions,window=None):
    s=rule(positions,key_positions,window)&(key_positions[:,None]<positions[:,:,None])
    return s[:,None]
@wrong("visible","window")
def vi8(positions,key_positions,window=None):
    T,S=positions.shape[1],key_positions.shape[1]
    return visible(positions,key_positions)&(causal_mask(T,T,window).repeat(1,2)[:,:S] if window and 2*T>=S else True)
@wrong("visible","padding")
def vi9(positions,key_positions,window=None):
    m=rule(positions,key_positions,window)
    return (m|((key_positions<0)[:,None]&(positions>=0)[:,:,None]))[:,None]
@wrong("visible","document")
def vi10(positions,key_positions,window=None):
    new=torch.diff(key_positions,dim=1,prepend=key_positions[:,:1])<0
    n=new.cumsum(0);T=positions.shape[1]
    return (rule(positions,key_positions,window,documents=False)&(n[:,-T:,None]==n[:,None]))[:,None]

@wrong("Attention","value|rotat")
class A1(Layer):
    def place(self,q,k,v,a): return rotate(self.query_norm(q),a),self.key_norm(k),rotate(v,a)
@wrong("Attention","query_norm|quer")
class A2(Layer):
    def place(self,q,k,v,a): return rotate(q,a),rotate(self.key_norm(k),a),v
@wrong("Attention","swap|key_norm|query_norm")
class A3(Layer):
    def place(self,q,k,v,a): return rotate(self.key_norm(q),a),rotate(self.query_norm(k),a),v
@wrong("Attention","norm")
class A4(Layer):
    def __init__(self,d,h,k,hd,*,window=None,attend=attend_torch,query_norm=None,key_norm=None):
        super().__init__(d,h,k,hd,window=window,attend=attend)
        self.query_norm=nn.RMSNorm(hd);self.key_norm=nn.RMSNorm(hd)
@wrong("Attention","order|\\(D H\\)|side|interleav")
class A5(Layer):
    def finish(self,h,x): return self.output(rearrange(h,"B H T D -> B T (D H)"))
@wrong("Attention","neighbouring|\\(H D\\)")
class A6(Layer):
    def project(self,x): return tuple(rearrange(f(x),"B T (D H) -> B H T D",D=self.head_dim) for f in (self.query,self.key,self.value))
@wrong("Attention","value|neighbouring|\\(H D\\)|view")
class A7(Layer):
    def project(self,x):
        q,k,v=super().project(x); B,T,_=x.shape
        return q,k,self.value(x).reshape(B,-1,T,self.head_dim)
@wrong("Attention","raised|rotate|shape")
class A8(Layer):
    def project(self,x): return tuple(f(x).unflatten(-1,(-1,self.head_dim)) for f in (self.query,self.key,self.value))
@wrong("Attention","cache|position")
class A9(Layer):
    def recall(self,k,v,positions,cache,layer):
        if cache is None: return k,v,positions
        k,v,_=cache.update(layer,k,v,positions); return k,v,None
@wrong("Attention","window|cache")
class A10(Layer):
    def mask(self,T,S,p,kp,cache):
        if p is not None and kp is not None: return visible(p,kp,self.window)
        if T==1: return torch.ones(1,S,dtype=torch.bool)
        return causal_mask(T,S,self.window)
@wrong("Attention","residual|added|input|adds")
class A11(Layer):
    def finish(self,h,x): return self.output(merge_heads(h))+x
@wrong("Attention","n_kv_heads|uneven|ValueError")
class A12(Layer):
    def __init__(self,d,h,k,hd,**p):
        assert h%k==0
        super().__init__(d,h,k,hd,**p)
@wrong("Attention","quer|tok|last|shape")
class A13(Layer):
    def forward(self,x,angles,positions=None,cache=None,layer=0): return super().forward(x,angles,positions,cache,layer)[:,-1:]
@wrong("Attention","scal|multipl|attend")
class A14(Layer):
    def finish(self,h,x): return super().finish(h/self.head_dim**.5,x)
@wrong("Attention","cache|order|first|behind|update|attend")
class A15(Layer):
    def recall(self,k,v,positions,cache,layer):
        k2,v2,p=super().recall(k,v,positions,cache,layer)
        return k2.flip(2),v2.flip(2),p
@wrong("Attention","cache|norm|key_norm")
class A16(Layer):
    def place(self,q,k,v,a): return rotate(self.query_norm(q),a),rotate(k,a),v
    def recall(self,k,v,positions,cache,layer):
        k,v,p=super().recall(k,v,positions,cache,layer); return self.key_norm(k),v,p
@wrong("Attention","mask|future|causal|positions")
class A17(Layer):
    def mask(self,T,S,p,kp,cache):
        if p is None: return torch.ones(T,S,dtype=torch.bool) if self.window is None else causal_mask(T,S,self.window)
        return visible(p,kp,self.window)
@wrong("Attention","head|group|quer")
class A18(Layer):
    def project(self,x):
        q,k,v=super().project(x)
        H,K=q.shape[1],k.shape[1]
        return rearrange(q,"B (G K) T D -> B (K G) T D",K=K),k,v
@wrong("Attention","future|padding|document|position")
class A19(Layer):
    def mask(self,T,S,p,kp,cache):
        if p is None: return causal_mask(T,S,self.window)
        return (kp[:,None,:]<=p[:,:,None])[:,None]
@wrong("Attention","layer")
class A20(Layer):
    def recall(self,k,v,positions,cache,layer):
        return (k,v,positions) if cache is None else cache.update(layer+1,k,v,positions)
@wrong("Attention","nn.Module|Module")
class A21:
    def __init__(self,d_model,n_heads,n_kv_heads,head_dim,*,window=None,attend=None,query_norm=None,key_norm=None): pass
    def forward(self,x,angles,positions=None,cache=None,layer=0): return x
@wrong("Attention","forward|raised")
class A22(nn.Module):
    def __init__(self,d_model,n_heads,n_kv_heads,head_dim,*,window=None,attend=None,query_norm=None,key_norm=None):
        super().__init__()
        self.query=nn.Linear(d_model,n_heads*head_dim,bias=False);self.key=nn.Linear(d_model,n_kv_heads*head_dim,bias=False);self.value=nn.Linear(d_model,n_kv_heads*head_dim,bias=False);self.output=nn.Linear(n_heads*head_dim,d_model,bias=False)
@wrong("Attention","cache|keys|update")
class A23(Layer):
    def recall(self,k,v,positions,cache,layer):
        if cache is None: return k,v,positions
        k,_,p=cache.update(layer,k,v,positions); return k,v.repeat(1,1,k.shape[2]//v.shape[2]+1,1)[:,:,:k.shape[2]],p
@wrong("Attention","first|last|T")
class A24(Layer):
    def mask(self,T,S,p,kp,cache):
        if p is None: return causal_mask(S,S,self.window)[:T]
        return visible(p,kp,self.window)
@wrong("Attention","projection|query|key|applied")
class A25(Layer):
    def project(self,x):
        q,k,v=super().project(x); return (split_heads(x,self.head_dim),k,v) if x.shape[-1]==q.shape[1]*q.shape[3] else (q,k,v)
